"""The common shapes of records with conversations and ranked answers, named after the data sets that use them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from megagpt.data.chat import ROLE_TOKENS, Message

Messages = tuple[Message, ...]
Record = dict[str, Any]


class Ranked(NamedTuple):
    """A prompt, answers to it, and their ranks, 0 for the best."""

    prompt: Messages
    answers: tuple[str, ...]
    ranks: tuple[int, ...]


SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Our role for each speaker of ShareGPT's conversations."""


@dataclass(frozen=True)
class Shape:
    """One way to write a record. Its functions raise KeyError, TypeError or ValueError for a malformed record."""

    name: str
    """Its name in the log."""
    keys: frozenset[str]
    """Required keys; not copied to `Conversation.extra`."""
    messages: Callable[[Record], Messages]
    """The conversation; for ranked answers, the one that leads to the best answer."""
    rankings: Callable[[Record], Iterator[Ranked]] | None = None
    """Prompts with ranked answers, for shapes that have them; a record may have none to compare."""
    optional: frozenset[str] = frozenset()
    """Keys that it may have; not copied either."""


def shape_of(record: Any) -> Shape | None:
    """The shape of a record, or None: the first of SHAPES whose keys it has."""
    if not isinstance(record, dict):
        return None
    return next((shape for shape in SHAPES if shape.keys <= set(record)), None)


def edit_messages(instruction: str, text: str) -> Messages:
    """The user's message that asks to change `text` as `instruction` says; without a text, the instruction alone."""
    return (Message("user", f"{instruction}\n\n{text}" if text else instruction),)


def turns(value: Any) -> Messages:
    """Messages of a list of {"role", "content"}. Raises ValueError for anything else."""
    messages = [Message(turn.get("role"), turn.get("content")) for turn in value if isinstance(turn, dict)]
    if len(messages) < len(value) or not all(m.role in ROLE_TOKENS and isinstance(m.content, str) for m in messages):
        raise ValueError('not a list of {"role": "system", "user" or "assistant", "content": "..."}')
    return tuple(messages)


def transcript(value: str) -> Messages:
    """Messages of a text whose paragraphs begin with "Human:" and "Assistant:" (HH-RLHF)."""
    parts = f"\n\n{value.strip()}".split("\n\nHuman:")
    if len(parts) < 2 or parts[0].strip():
        raise ValueError('a transcript begins with "Human:"')
    messages = []
    for part in parts[1:]:
        asked, *answers = part.split("\n\nAssistant:")
        messages.append(Message("user", asked.strip()))
        messages += [Message("assistant", answer.strip()) for answer in answers]
    return tuple(messages)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def from_ranked_messages(record: Record) -> Messages:
    """Ours: the prompt with the best answer."""
    (ranked,) = rank_messages(record)
    return (*ranked.prompt, Message("assistant", ranked.answers[ranked.ranks.index(min(ranked.ranks))]))


def rank_messages(record: Record) -> Iterator[Ranked]:
    """Ours: {"messages": prompt, "answers": [{"content", "rank"}]}."""
    answers = tuple(_text(answer["content"]) for answer in record["answers"])
    if not answers:
        raise ValueError("there is no answer")
    yield Ranked(turns(record["messages"]), answers, tuple(int(answer["rank"]) for answer in record["answers"]))


def from_messages(record: Record) -> Messages:
    """OpenAI's: {"messages": [{"role", "content"}]}."""
    return turns(record["messages"])


def from_sharegpt(record: Record) -> Messages:
    """ShareGPT: {"conversations": [{"from", "value"}]}."""
    return tuple(_sharegpt_message(turn) for turn in record["conversations"])


def from_sharegpt_chosen(record: Record) -> Messages:
    """ShareGPT with {"chosen", "rejected"} turns: the conversation with the chosen one."""
    return (*from_sharegpt(record), _sharegpt_message(record["chosen"]))


def rank_sharegpt(record: Record) -> Iterator[Ranked]:
    """ShareGPT with {"chosen", "rejected"} turns."""
    answers = _sharegpt_message(record["chosen"]).content, _sharegpt_message(record["rejected"]).content
    yield Ranked(from_sharegpt(record), answers, (0, 1))


def _sharegpt_message(turn: Record) -> Message:
    speaker = turn["from"]
    if speaker not in SHAREGPT_ROLES:
        raise ValueError(f"the speaker {speaker!r} is none of {', '.join(SHAREGPT_ROLES)}")
    return Message(SHAREGPT_ROLES[speaker], _text(turn["value"]))


def from_hh_rlhf(record: Record) -> Messages:
    """Anthropic's HH-RLHF: the chosen one of two whole conversations."""
    return _hh_rlhf_pair(record)[0]


def rank_hh_rlhf(record: Record) -> Iterator[Ranked]:
    """Anthropic's HH-RLHF: {"chosen", "rejected"}, two conversations that differ in their last answer."""
    chosen, rejected = _hh_rlhf_pair(record)
    if not chosen or chosen[-1].role != "assistant":
        raise ValueError("the chosen conversation does not end with an answer")
    if chosen[:-1] == rejected[:-1]:  # some records have answers to different prompts, which cannot be compared
        yield Ranked(chosen[:-1], (chosen[-1].content, rejected[-1].content), (0, 1))


def _hh_rlhf_pair(record: Record) -> tuple[Messages, Messages]:
    read = transcript if isinstance(record["chosen"], str) else turns
    return read(record["chosen"]), read(record["rejected"])


def from_oasst(record: Record) -> Messages:
    """OpenAssistant's trees of replies: the path of the best replies."""
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
            answers = tuple(_text(reply["text"]) for reply in ranked)
            yield Ranked(prompt, answers, tuple(int(reply["rank"]) for reply in ranked))
        waiting += [(prompt, reply) for reply in reversed(node["replies"])]


def _oasst_replies(node: Record) -> list[Record]:
    """Replies to a node, the best first; those without a rank come last."""
    return sorted(node["replies"], key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def _oasst_message(node: Record) -> Message:
    return Message("assistant" if node["role"] == "assistant" else "user", _text(node["text"]))


def from_alpaca(record: Record) -> Messages:
    """Alpaca: {"instruction", "input" or none, "output"}."""
    request = edit_messages(_text(record["instruction"]), _text(record.get("input") or ""))
    return (*request, Message("assistant", _text(record["output"])))


def from_prompt_completion(record: Record) -> Messages:
    """OpenAI's older files: {"prompt", "completion"}."""
    return Message("user", _text(record["prompt"])), Message("assistant", _text(record["completion"]))


def from_question_answer(record: Record) -> Messages:
    """GSM8K: {"question", "answer"}."""
    return Message("user", _text(record["question"])), Message("assistant", _text(record["answer"]))


SHAPES = (
    Shape(
        "messages with ranked answers",
        keys=frozenset({"messages", "answers"}),
        messages=from_ranked_messages,
        rankings=rank_messages,
    ),
    Shape("messages", keys=frozenset({"messages"}), messages=from_messages),
    Shape(
        "ShareGPT with a chosen answer",
        keys=frozenset({"conversations", "chosen", "rejected"}),
        messages=from_sharegpt_chosen,
        rankings=rank_sharegpt,
    ),
    Shape("ShareGPT", keys=frozenset({"conversations"}), messages=from_sharegpt),
    Shape(
        "chosen and rejected",
        keys=frozenset({"chosen", "rejected"}),
        messages=from_hh_rlhf,
        rankings=rank_hh_rlhf,
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
        optional=frozenset({"input"}),
    ),
    Shape("prompt and completion", keys=frozenset({"prompt", "completion"}), messages=from_prompt_completion),
    Shape("question and answer", keys=frozenset({"question", "answer"}), messages=from_question_answer),
)
"""The shapes that can be read; the first that fits a record counts."""
