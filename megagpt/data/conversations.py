"""Conversations: reading them from JSON files in the common shapes, and dividing them into splits."""

import gzip
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from megagpt.config.inputs import how_to_make
from megagpt.data.chat import Message
from megagpt.data.packed import SPLITS, Split, split_of
from megagpt.data.shapes import SHAPES, Shape, shape_of
from megagpt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """One record of a file."""

    messages: tuple[Message, ...]
    user: str | None = None
    """The person who wrote it, if known."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """The record's other fields, such as "check", by which a program scores answers."""


class HasPrompt(Protocol):
    """A `Conversation`, or another record that begins as one; input of `split_conversations`."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns."""

    @property
    def user(self) -> str | None:
        """The person who wrote it, if known."""


Record = TypeVar("Record", bound=HasPrompt)


def read_conversations(paths: Sequence[str | Path]) -> list[Conversation]:
    """The conversations of all files, in order; each file has one of the SHAPES, which the log names.

    A record whose "label" is false holds an unwanted answer, and is left out. Raises DataError naming file and
    line of a record that is malformed, of no known shape, or of another shape than the file's first.
    """
    found = [_conversation(*item) for path in paths for item in shaped_records(Path(path))]
    wanted = [conversation for conversation in found if conversation.extra.get("label") is not False]
    if len(wanted) < len(found):
        log.info("%d of %d conversations are left out: their label is false", len(found) - len(wanted), len(found))
    return wanted


def shaped_records(path: Path) -> Iterator[tuple[dict[str, Any], Shape, str]]:
    """The records of a file, their shape, and where each is. Raises DataError; see `read_conversations`."""
    first: Shape | None = None
    count = 0
    for record, place in records(path):
        shape = shape_of(record)
        if shape is None:
            keys = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
            raise DataError(
                f"{place}: a record with {keys} is of no known shape: {'; '.join(shape.name for shape in SHAPES)}"
            )
        first = first or shape
        if shape is not first:
            raise DataError(
                f"{place}: this record is {shape.name}, but the file began with {first.name}: divide it into two files"
            )
        count += 1
        yield record, shape, place
    if first:
        log.info("%s: %d records, read as %s", path, count, first.name)


def records(path: Path) -> Iterator[tuple[Any, str]]:
    """The objects of a file of JSON lines, or of one JSON list, and where each is. Raises DataError."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        remedy = f"; {how_to_make(path)}" if isinstance(error, FileNotFoundError) and how_to_make(path) else ""
        raise DataError(f"cannot read conversations from {path}: {error}{remedy}") from None
    if text.lstrip().startswith("["):
        try:
            yield from ((record, f"{path}[{index}]") for index, record in enumerate(json.loads(text)))
            return
        except ValueError:
            pass  # lines that are lists; what they are is said below
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line), f"{path}:{number}"
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _conversation(record: dict[str, Any], shape: Shape, place: str) -> Conversation:
    try:
        messages = shape.messages(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: not {shape.name}: {error}") from None
    known = {*shape.keys, *shape.optional, "user"}
    return Conversation(messages, record.get("user"), {name: v for name, v in record.items() if name not in known})


def split_conversations(records: Sequence[Record], proportions: Sequence[float]) -> dict[Split, list[Record]]:
    """Records with the same first prompt or the same user go to the same split, transitively.

    Prompts are the same if they differ only in case and white space. Exact repetitions are left out. `proportions` are
    the shares of train, validation and test, relative to their sum.
    """
    distinct = list(dict.fromkeys(records))
    groups = _Groups()
    for record in distinct:
        if record.user is not None:
            groups.join(_first_prompt(record), f"user {record.user}")
    splits: dict[Split, list[Record]] = {split: [] for split in SPLITS}
    for record in distinct:
        splits[split_of(groups.name(_first_prompt(record)), proportions)].append(record)
    return splits


class _Groups:
    """Keys in groups that can be joined (union-find). A group's name is the least of its keys, whatever the order."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def name(self, key: str) -> str:
        while self._parents.setdefault(key, key) != key:
            self._parents[key] = key = self._parents[self._parents[key]]  # halves the path for the next call
        return key

    def join(self, a: str, b: str) -> None:
        first, second = sorted((self.name(a), self.name(b)))
        self._parents[second] = first


def _first_prompt(record: HasPrompt) -> str:
    first = next((message.content for message in record.messages if message.role == "user"), "")
    return "prompt " + " ".join(first.split()).lower()
