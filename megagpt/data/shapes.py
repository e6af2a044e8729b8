"""The common shapes of records with conversations and ranked answers, named after the data sets that use them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from megagpt.data.chat import Message
from megagpt.data.turns import (
    Messages,
    Record,
    content,
    refuse_tools,
    sharegpt_turn,
    text,
    transcript,
    turns,
    with_system,
)


class Ranked(NamedTuple):
    """A prompt, answers to it, and their ranks, 0 for the best."""

    prompt: Messages
    answers: tuple[str, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Shape:
    """One way to write a record. Its functions raise KeyError, TypeError or ValueError for a malformed record."""

    name: str
    """Its name in the log."""
    keys: frozenset[str]
    """Required keys."""
    messages: Callable[[Record], Messages]
    """Returns the conversation; of ranked answers, the one with the best answer."""
    rankings: Callable[[Record], Iterator[Ranked]] | None = None
    """Returns prompts with ranked answers, perhaps none; None for shapes without ranked answers."""
    optional: frozenset[str] = frozenset()
    """Optional keys that are read."""

    @property
    def known(self) -> frozenset[str]:
        """All keys that are read; they are not copied to `Conversation.extra`."""
        return self.keys | self.optional | {"user", "label"}


def shape_of(record: Any) -> Shape | None:
    """The shape of a record, or None: the first of SHAPES whose keys it has."""
    if not isinstance(record, dict):
        return None
    return next((shape for shape in SHAPES if shape.keys <= set(record)), None)


def edit_messages(instruction: str, given: str) -> Messages:
    """The user's message: the instruction, and below it the text to change, if there is one."""
    return (Message("user", f"{instruction}\n\n{given}" if given else instruction),)


def from_ranked_messages(record: Record) -> Messages:
    """MegaGPT's own: the prompt with the best answer."""
    (ranked,) = rank_messages(record)
    return (*ranked.prompt, Message("assistant", ranked.answers[ranked.ranks.index(min(ranked.ranks))]))


def rank_messages(record: Record) -> Iterator[Ranked]:
    """MegaGPT's own: {"messages": prompt, "answers": [{"content", "rank" or "score"}]}."""
    refuse_tools(record)
    given = record["answers"]
    if not given:
        raise ValueError("there is no answer")
    answers = tuple(content(answer["content"]) for answer in given)
    yield Ranked(with_system(record, turns(record["messages"])), answers, _ranks(given))


def _ranks(answers: Sequence[Record]) -> tuple[int, ...]:
    """Ranks of answers that have a `rank` (low is good) or a `score` (high is good)."""
    kinds = {kind for answer in answers for kind in ("rank", "score") if answer.get(kind) is not None}
    if len(kinds) != 1 or any(answer.get(kind) is None for answer in answers for kind in kinds):
        raise ValueError("every answer must have a rank, or every answer a score")
    (kind,) = kinds
    values = [_number(answer[kind], kind) for answer in answers]
    if kind == "rank" and all(value >= 0 and value.is_integer() for value in values):
        return tuple(map(int, values))
    order = sorted(set(values), reverse=kind == "score")
    return tuple(order.index(value) for value in values)


def _number(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}, not a number")
    return number


def from_messages(record: Record) -> Messages:
    """OpenAI's: {"messages": [{"role", "content"}]}."""
    refuse_tools(record)
    return with_system(record, turns(record["messages"]))


def from_sharegpt(record: Record) -> Messages:
    """ShareGPT: {"conversations": [{"from", "value"}]}."""
    refuse_tools(record)
    return with_system(record, tuple(sharegpt_turn(turn) for turn in record["conversations"]))


def from_sharegpt_chosen(record: Record) -> Messages:
    """ShareGPT with {"chosen", "rejected"} turns: the conversation with the chosen turn."""
    return (*from_sharegpt(record), sharegpt_turn(record["chosen"]))


def rank_sharegpt(record: Record) -> Iterator[Ranked]:
    """ShareGPT with {"chosen", "rejected"} turns."""
    _check_scores(record)
    answers = sharegpt_turn(record["chosen"]).content, sharegpt_turn(record["rejected"]).content
    yield Ranked(from_sharegpt(record), answers, (0, 1))


PROMPTS = ("prompt", "question", "instruction")
"""Fields that hold the prompt of a chosen and a rejected answer."""
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


def from_pair(record: Record) -> Messages:
    """Of two answers or whole conversations: the conversation with the chosen answer."""
    return _pair(record)[0]


def rank_pair(record: Record) -> Iterator[Ranked]:
    """{"chosen", "rejected"}: answers to the record's prompt (TRL), or conversations that differ in their last answer
    (HH-RLHF)."""
    chosen, rejected = _pair(record)
    if chosen[:-1] == rejected[:-1]:  # some records have answers to different prompts, which cannot be compared
        yield Ranked(chosen[:-1], (chosen[-1].content, rejected[-1].content), (0, 1))


def _pair(record: Record) -> tuple[Messages, Messages]:
    refuse_tools(record)
    _check_scores(record)
    prompt = _prompt(record)
    pair = _whole(prompt, record["chosen"], "chosen"), _whole(prompt, record["rejected"], "rejected")
    return with_system(record, pair[0]), with_system(record, pair[1])


def _prompt(record: Record) -> Messages:
    """The turns before the answers; none if the answers are whole conversations."""
    given = [name for name in PROMPTS if record.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: only one of them can be the prompt")
    before = _history(record)
    if not given:
        return before
    value = record[given[0]]
    if given[0] == "instruction":
        return (*before, *edit_messages(text(value), text(record.get("input") or "")))
    if isinstance(value, str) and value.strip().startswith("Human:"):
        return (*before, *transcript(value.removesuffix("Assistant:")))
    return (*before, *(turns(value) if isinstance(value, list) else (Message("user", text(value)),)))


def _whole(prompt: Messages, answer: Any, name: str) -> Messages:
    """The conversation that ends with `answer`, which may be only the answer, or include the prompt."""
    if isinstance(answer, dict):
        answer = [answer]
    if isinstance(answer, str):
        is_transcript = not prompt or answer.strip().startswith("Human:")
        found = transcript(answer) if is_transcript else (Message("assistant", text(answer)),)
    else:
        found = turns(answer)
    if not found or found[-1].role != "assistant":
        raise ValueError(f"the {name} conversation does not end with an answer")
    return found if found[: len(prompt)] == prompt else (*prompt, *found)


def _check_scores(record: Record) -> None:
    for names in SCORES:
        if all(record.get(name) is not None for name in names):
            better, worse = (_number(record[name], name) for name in names)
            if better < worse:
                raise ValueError(f"{names[0]} ({better:g}) is below {names[1]} ({worse:g})")


def from_oasst(record: Record) -> Messages:
    """OpenAssistant's trees of replies: the path that follows the best reply of every turn."""
    node, path = record["prompt"], [_oasst_message(record["prompt"])]
    while replies := _oasst_replies(node):
        node = replies[0]
        path.append(_oasst_message(node))
    return tuple(path)


def rank_oasst(record: Record) -> Iterator[Ranked]:
    """OpenAssistant's trees of replies: every message with two or more ranked replies of the assistant."""
    waiting: list[tuple[Messages, Record]] = [((), record["prompt"])]
    while waiting:
        before, node = waiting.pop()
        prompt = (*before, _oasst_message(node))
        ranked = [reply for reply in node["replies"] if reply["role"] == "assistant" and reply.get("rank") is not None]
        if len(ranked) > 1:
            answers = tuple(text(reply["text"]) for reply in ranked)
            yield Ranked(prompt, answers, _ranks([{"rank": reply["rank"]} for reply in ranked]))
        waiting += [(prompt, reply) for reply in reversed(node["replies"])]


def _oasst_replies(node: Record) -> list[Record]:
    """Replies to a node, the best first; replies without a rank come last."""
    return sorted(node["replies"], key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def _oasst_message(node: Record) -> Message:
    return Message("assistant" if node["role"] == "assistant" else "user", text(node["text"]))


def _history(record: Record) -> Messages:
    """LLaMA-Factory's {"history": [[question, answer], ...]}: earlier turns."""
    found: list[Message] = []
    for exchange in record.get("history") or ():
        asked, answered = exchange
        found += [Message("user", text(asked)), Message("assistant", text(answered))]
    return tuple(found)


def from_alpaca(record: Record) -> Messages:
    """Alpaca: {"instruction", "input" or none, "output"}; also with LLaMA-Factory's "system" and "history"."""
    refuse_tools(record)
    request = edit_messages(text(record["instruction"]), text(record.get("input") or ""))
    return with_system(record, (*_history(record), *request, Message("assistant", text(record["output"]))))


def from_dolly(record: Record) -> Messages:
    """Dolly: {"instruction", "context" or none, "response"}."""
    request = edit_messages(text(record["instruction"]), text(record.get("context") or ""))
    return with_system(record, (*request, Message("assistant", text(record["response"]))))


def _asked_and_answered(question: str, answer: str) -> Callable[[Record], Messages]:
    """A reader of records with a question and an answer, each a text or a list of messages (TRL)."""

    def read(record: Record) -> Messages:
        refuse_tools(record)
        asked, answered = record[question], record[answer]
        before = turns(asked) if isinstance(asked, list) else (Message("user", text(asked)),)
        after = turns(answered) if isinstance(answered, list) else (Message("assistant", text(answered)),)
        return with_system(record, (*_history(record), *before, *after))

    return read


def from_prompt(record: Record) -> Messages:
    """{"prompt"}: a text, or a list of messages, without an answer (TRL)."""
    refuse_tools(record)
    value = record["prompt"]
    return with_system(record, turns(value) if isinstance(value, list) else (Message("user", text(value)),))


_AROUND = frozenset({"system", "tools"})
_BEFORE = _AROUND | {"history"}
SHAPES = (
    Shape(
        "messages with ranked answers",
        keys=frozenset({"messages", "answers"}),
        messages=from_ranked_messages,
        rankings=rank_messages,
        optional=_AROUND,
    ),
    Shape("messages", keys=frozenset({"messages"}), messages=from_messages, optional=_AROUND),
    Shape(
        "ShareGPT with a chosen answer",
        keys=frozenset({"conversations", "chosen", "rejected"}),
        messages=from_sharegpt_chosen,
        rankings=rank_sharegpt,
        optional=_AROUND | {name for names in SCORES for name in names},
    ),
    Shape("ShareGPT", keys=frozenset({"conversations"}), messages=from_sharegpt, optional=_AROUND),
    Shape(
        "chosen and rejected",
        keys=frozenset({"chosen", "rejected"}),
        messages=from_pair,
        rankings=rank_pair,
        optional=_BEFORE | {*PROMPTS, "input"} | {name for names in SCORES for name in names},
    ),
    Shape(
        "a tree of replies",
        keys=frozenset({"prompt", "message_tree_id"}),
        messages=from_oasst,
        rankings=rank_oasst,
        optional=frozenset({"tree_state"}),
    ),
    Shape(
        "instruction, input, output",
        keys=frozenset({"instruction", "output"}),
        messages=from_alpaca,
        optional=_BEFORE | {"input"},
    ),
    Shape(
        "instruction, context, response",
        keys=frozenset({"instruction", "response"}),
        messages=from_dolly,
        optional=frozenset({"context", "system"}),
    ),
    *(
        Shape(
            f"{asked} and {answered}", frozenset({asked, answered}), _asked_and_answered(asked, answered), None, _BEFORE
        )
        for asked, answered in (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
    ),
    Shape("prompt", keys=frozenset({"prompt"}), messages=from_prompt, optional=_AROUND),
)
"""The shapes that can be read; a record has the first shape whose keys it has."""
