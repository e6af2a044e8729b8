"""Read turns of conversations in the formats of public data sets. Turns that cannot be learnt raise an error."""

from collections.abc import Iterator, Mapping
from typing import Any

from megagpt.data.chat import ROLE_TOKENS, Message, Role

Messages = tuple[Message, ...]
Record = dict[str, Any]

SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Role of each speaker in ShareGPT's conversations."""

TURN_FIELDS = frozenset({"role", "content", "from", "value", "weight", "train", "tool_calls", "function_call"})
"""Fields of a turn that are read or raise an error."""
CALLS = ("tool_calls", "function_call")


def turns(value: Any) -> Messages:
    """Messages of a list of {"role", "content"}. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError('not a list of {"role": "system", "user" or "assistant", "content": "..."}')
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Record) -> Message:
    role = "system" if turn.get("role") == "developer" else turn.get("role")
    if role not in ROLE_TOKENS:
        raise ValueError(f"the role {turn.get('role')!r} is not one of {', '.join(ROLE_TOKENS)}")
    return _message(role, content(turn.get("content")), turn)


def sharegpt_turn(turn: Record) -> Message:
    """The message of a {"from", "value"}."""
    speaker = turn["from"]
    if speaker not in SPEAKERS:
        raise ValueError(f"the speaker {speaker!r} is not one of {', '.join(SPEAKERS)}")
    return _message(SPEAKERS[speaker], content(turn["value"]), turn)


def _message(role: Role, said: str, turn: Record) -> Message:
    """A message. The turn's `weight` or `train` decides whether it is trained on."""
    if call := next((name for name in CALLS if turn.get(name)), None):
        raise ValueError(f"{call}: calls of tools cannot be learnt; leave such records out")
    return Message(role, said, _is_trained(turn))


def _is_trained(turn: Record) -> bool:
    """Whether a turn is to be learnt: OpenAI's `weight` 0 or 1, or axolotl's `train`."""
    given = {name: turn[name] for name in ("weight", "train") if turn.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{name} is {value!r}; a turn is learnt (1) or not (0), and nothing between")
    return all(given.values())


def content(value: Any) -> str:
    """A turn's text, from a string or OpenAI's list of parts. Raises ValueError for parts other than text."""
    if isinstance(value, list):
        kinds = {part.get("type") if isinstance(part, dict) else type(part).__name__ for part in value}
        if kinds - {"text"}:
            raise ValueError(
                f"a turn has parts of kind {', '.join(sorted(map(str, kinds - {'text'})))}; only text is read"
            )
        return "".join(text(part.get("text")) for part in value)
    return text(value)


def text(value: Any) -> str:
    """`value`, which must be text. Raises TypeError if it is not, ValueError if UTF-8 cannot encode it."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{value[error.start]!r} is half of a character (a surrogate): mend the text") from None
    return value


def transcript(value: str) -> Messages:
    """Messages of a text whose paragraphs begin with "Human:" and "Assistant:" (HH-RLHF)."""
    parts = f"\n\n{text(value).strip()}".split("\n\nHuman:")
    if len(parts) < 2 or parts[0].strip():
        raise ValueError('a transcript begins with "Human:"')
    messages = []
    for part in parts[1:]:
        asked, *answers = part.split("\n\nAssistant:")
        messages.append(Message("user", asked.strip()))
        messages += [Message("assistant", answer.strip()) for answer in answers]
    return tuple(messages)


def with_system(record: Record, messages: Messages) -> Messages:
    """Messages after the record's `system` text, if any. Raises ValueError if they also begin with a system turn."""
    system = record.get("system")
    if system is None or not text(system).strip():
        return messages
    if messages and messages[0].role == "system":
        raise ValueError('the record has "system", and its conversation begins with a system turn: keep one')
    return (Message("system", system), *messages)


def refuse_tools(record: Record) -> None:
    """Raise ValueError for a record that describes tools to call."""
    if record.get("tools") not in (None, "", [], "[]"):
        raise ValueError("tools: calls of tools cannot be learnt; leave such records out")


def unread_fields(record: Record, known: frozenset[str]) -> Iterator[str]:
    """Names of the unread fields of a record and of its turns, such as messages[].name."""
    yield from (name for name in record if name not in known)
    for name in known & record.keys():
        value = record[name]
        if isinstance(value, list) and all(isinstance(turn, Mapping) and "rank" not in turn for turn in value):
            found = dict.fromkeys(field for turn in value for field in turn if field not in TURN_FIELDS | {"score"})
            yield from (f"{name}[].{field}" for field in found)
