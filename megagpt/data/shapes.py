"""The shapes in which conversations and ranked answers are common, and what a record of each says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megagpt.data.chat import ROLE_TOKENS, Message

Messages = tuple[Message, ...]
Ranked = tuple[Messages, tuple[str, ...], tuple[int, ...]]
"""A prompt, answers to it, and their ranks, 0 for the best."""

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Who speaks, by the names of ShareGPT's conversations."""


@dataclass(frozen=True)
class Shape:
    """One way to write a record. What does not fit raises KeyError, TypeError or ValueError."""

    name: str
    """What the log calls it."""
    keys: frozenset[str]
    """Keys that every such record has; those that say nothing else are no extra fields."""
    messages: Callable[[dict[str, Any]], Messages]
    """The conversation; of ranked answers the one that leads to the best."""
    rankings: Callable[[dict[str, Any]], Iterator[Ranked]] | None = None
    """Prompts with ranked answers, for shapes that have them; a record may have none to compare."""
    further: frozenset[str] = frozenset()
    """Keys that it may have besides."""


def shape_of(record: Any) -> Shape | None:
    """The shape of a record, or None: the first of SHAPES whose keys it has."""
    if not isinstance(record, dict):
        return None
    return next((shape for shape in SHAPES if shape.keys <= set(record)), None)


def edit_messages(instruction: str, text: str) -> Messages:
    """What a user says to have `text` changed as `instruction` says; without a text, the instruction alone."""
    return (Message("user", f"{instruction}\n\n{text}" if text else instruction),)


def turns(value: Any) -> Messages:
    """Messages of a list of {"role", "content"}. Raises ValueError when it is none."""
    messages = [Message(turn.get("role"), turn.get("content")) for turn in value if isinstance(turn, dict)]
    if len(messages) < len(value) or not all(m.role in ROLE_TOKENS and isinstance(m.content, str) for m in messages):
        raise ValueError('not a list of {"role": "system", "user" or "assistant", "content": "..."}')
    return tuple(messages)


def transcript(value: str) -> Messages:
    """Messages of a text with paragraphs that begin with "Human:" and "Assistant:"."""
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


def _said(turn: dict[str, Any]) -> Message:
    speaker = turn["from"]
    if speaker not in SPEAKERS:
        raise ValueError(f"{speaker!r} speaks, who is none of {', '.join(SPEAKERS)}")
    return Message(SPEAKERS[speaker], _text(turn["value"]))


def _talk(record: dict[str, Any]) -> Messages:
    return tuple(_said(turn) for turn in record["conversations"])


def _asked(question: str, answer: str) -> Callable[[dict[str, Any]], Messages]:
    return lambda record: (Message("user", _text(record[question])), Message("assistant", _text(record[answer])))


def _edit(record: dict[str, Any]) -> Messages:
    asked = edit_messages(_text(record["instruction"]), _text(record.get("input") or ""))
    return (*asked, Message("assistant", _text(record["output"])))


def _listed(record: dict[str, Any]) -> Iterator[Ranked]:
    answers = tuple(_text(answer["content"]) for answer in record["answers"])
    if not answers:
        raise ValueError("there is no answer")
    yield turns(record["messages"]), answers, tuple(int(answer["rank"]) for answer in record["answers"])


def _best_listed(record: dict[str, Any]) -> Messages:
    ((prompt, answers, ranks),) = _listed(record)
    return (*prompt, Message("assistant", answers[ranks.index(min(ranks))]))


def _chosen_talk(record: dict[str, Any]) -> Iterator[Ranked]:
    yield _talk(record), (_said(record["chosen"]).content, _said(record["rejected"]).content), (0, 1)


def _both(record: dict[str, Any]) -> tuple[Messages, Messages]:
    read = transcript if isinstance(record["chosen"], str) else turns
    return read(record["chosen"]), read(record["rejected"])


def _chosen(record: dict[str, Any]) -> Iterator[Ranked]:
    chosen, rejected = _both(record)
    if not chosen or chosen[-1].role != "assistant":
        raise ValueError("what was chosen does not end with an answer")
    if chosen[:-1] == rejected[:-1]:  # else they are answers to different prompts, as some of HH-RLHF's
        yield chosen[:-1], (chosen[-1].content, rejected[-1].content), (0, 1)


def _replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Replies of a node of a tree, the best first; those without a rank come last."""
    return sorted(node["replies"], key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def _node(node: dict[str, Any]) -> Message:
    return Message("assistant" if node["role"] == "assistant" else "user", _text(node["text"]))


def _best_path(record: dict[str, Any]) -> Messages:
    node, path = record["prompt"], [_node(record["prompt"])]
    while replies := _replies(node):
        node = replies[0]
        path.append(_node(node))
    return tuple(path)


def _ranked_replies(record: dict[str, Any]) -> Iterator[Ranked]:
    waiting: list[tuple[Messages, dict[str, Any]]] = [((), record["prompt"])]
    while waiting:
        before, node = waiting.pop()
        so_far = (*before, _node(node))
        ranked = [reply for reply in node["replies"] if reply["role"] == "assistant" and reply.get("rank") is not None]
        if len(ranked) > 1:
            yield so_far, tuple(_text(reply["text"]) for reply in ranked), tuple(int(r["rank"]) for r in ranked)
        waiting += [(so_far, reply) for reply in reversed(node["replies"])]


def _keys(*names: str) -> frozenset[str]:
    return frozenset(names)


SHAPES = (
    Shape("messages with ranked answers", _keys("messages", "answers"), _best_listed, _listed),
    Shape("messages", _keys("messages"), lambda record: turns(record["messages"])),
    Shape(
        "ShareGPT with a chosen answer",
        _keys("conversations", "chosen", "rejected"),
        lambda record: (*_talk(record), _said(record["chosen"])),
        _chosen_talk,
    ),
    Shape("ShareGPT", _keys("conversations"), _talk),
    Shape("chosen and rejected", _keys("chosen", "rejected"), lambda record: _both(record)[0], _chosen),
    Shape("a tree of replies", _keys("prompt", "message_tree_id"), _best_path, _ranked_replies, _keys("tree_state")),
    Shape("instruction, input, output", _keys("instruction", "output"), _edit, further=_keys("input")),
    Shape("prompt and completion", _keys("prompt", "completion"), _asked("prompt", "completion")),
    Shape("question and answer", _keys("question", "answer"), _asked("question", "answer")),
)
"""Those that are understood; the first that fits counts."""
