"""Conversations out of files of JSON, in the shapes that are common."""

import gzip
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megagpt.data.chat import ROLE_TOKENS, Message
from megagpt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """One record of a file."""

    messages: tuple[Message, ...]
    user: str | None = None
    """Who wrote it, where that is known."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """The record's other fields, such as "check", which says how a program tells right answers."""


def read_conversations(paths: Sequence[str | Path]) -> list[Conversation]:
    """The conversations of all files, in order.

    A record is {"messages": [{"role", "content"}, ...]}, or {"instruction", "input", "output"}. One whose "label" is
    false is an answer that nobody wanted, and is left out. Raises DataError naming file and line of a record that is
    neither.
    """
    found = [_conversation(record, place) for path in paths for record, place in records(Path(path))]
    wanted = [conversation for conversation in found if conversation.extra.get("label") is not False]
    if len(wanted) < len(found):
        log.info("%d of %d conversations are left out: their label is false", len(found) - len(wanted), len(found))
    return wanted


def edit_messages(instruction: str, text: str) -> tuple[Message, ...]:
    """What a user says to have `text` changed as `instruction` says; without a text, the instruction alone."""
    return (Message("user", f"{instruction}\n\n{text}" if text else instruction),)


def messages_of(value: Any) -> tuple[Message, ...]:
    """Messages of a list of {"role", "content"}. Raises ValueError when it is none."""
    messages = [Message(m.get("role"), m.get("content")) for m in value if isinstance(m, dict)]
    if len(messages) < len(value) or not all(m.role in ROLE_TOKENS and isinstance(m.content, str) for m in messages):
        raise ValueError('not a list of {"role": "system", "user" or "assistant", "content": "..."}')
    return tuple(messages)


def records(path: Path) -> Iterator[tuple[Any, str]]:
    """The objects of a file of JSON lines, and where each is (file:line). Raises DataError."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read conversations from {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line), f"{path}:{number}"
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _conversation(record: Any, place: str) -> Conversation:
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        try:
            return Conversation(messages_of(record["messages"]), record.get("user"), _extra(record, "messages"))
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
    if isinstance(record, dict) and {"instruction", "output"} <= set(record):
        texts = [record["instruction"], record.get("input") or "", record["output"]]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f'{place}: "instruction", "input" and "output" must be texts')
        instruction, given, output = texts
        messages = (*edit_messages(instruction, given), Message("assistant", output))
        return Conversation(messages, record.get("user"), _extra(record, "instruction", "input", "output"))
    keys = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
    raise DataError(
        f'{place}: a conversation has "messages", or "instruction" and "output"; this record has {keys}: rewrite the '
        "file in one of the two shapes"
    )


def _extra(record: dict[str, Any], *known: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in (*known, "user")}
