"""Read conversations from JSON files in the common shapes, and divide them into splits."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from megagpt.config.inputs import how_to_make
from megagpt.data.chat import Message
from megagpt.data.files import read_text
from megagpt.data.packed import SPLITS, Split, split_of
from megagpt.data.shapes import SHAPES, Shape, shape_of
from megagpt.data.turns import unread_fields
from megagpt.data.unread import log_unread
from megagpt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """One record of a file."""

    messages: tuple[Message, ...]
    user: str | None = None
    """The person who wrote it, if known."""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """The record's other fields, such as "check", the rule with which a program scores answers."""
    place: str = field(default="data.conversations", compare=False)
    """File and line of the record, for messages."""


class HasPrompt(Protocol):
    """A `Conversation`, or another record with the same turns and user; input of `split_conversations`."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns."""

    @property
    def user(self) -> str | None:
        """The person who wrote it, if known."""


Record = TypeVar("Record", bound=HasPrompt)


@dataclass
class Account:
    """Counts of the records that were read, left out, or read only in part."""

    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    """For each path: the name of the file's shape, and the number of its records."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of omitted records for each reason."""
    unread: dict[str, Counter[str]] = field(default_factory=dict)
    """For each path: fields that no code reads, and the number of records that have each."""
    empty: int = 0
    """Number of records that train on an empty answer."""

    @property
    def records(self) -> int:
        """Number of records of all files."""
        return sum(count for _, count in self.files.values())

    def log(self) -> None:
        """Log one line for each file and each reason."""
        for path, (shape, count) in self.files.items():
            log.info("%s: %d records, read as %s", path, count, shape)
            log_unread(path, self.unread[path])
        for reason, count in self.left_out.items():
            log.warning("%d of %d records are left out: %s", count, self.records, reason)
        if self.empty:
            log.warning("%d of %d records %s", self.empty, self.records, SAYS_NOTHING)


def read_conversations(paths: Sequence[str | Path], account: Account | None = None) -> list[Conversation]:
    """The conversations of all files, in order; each file has one of the SHAPES.

    A record whose "label" is false holds an unwanted answer, and is left out. Fields that no code reads are counted.
    account: collects these counts; None logs them

    Raises DataError with the file and line of a record that is malformed, has no known shape, or has another shape than
    the first record of its file.
    """
    noted, found = account or Account(), []
    for path in paths:
        for record, shape, place in shaped_records(Path(path), noted):
            conversation = _conversation(record, shape, place)
            if _is_wanted(record, place):
                found.append(conversation)
                noted.empty += any(_says_nothing(message) for message in conversation.messages)
            else:
                noted.left_out["their label is false"] += 1
    if account is None:
        noted.log()
    return found


SAYS_NOTHING = "have an empty answer, by which the model learns to say nothing: leave them out if it should not"


def _says_nothing(message: Message) -> bool:
    return message.role == "assistant" and message.trained and not message.content.strip()


WANTED = {True: True, False: False, "1": True, "0": False, "true": True, "false": False}
"""Meanings of a record's "label"; 1 and 0 are equal to true and false."""


def _is_wanted(record: dict[str, Any], place: str) -> bool:
    label = record.get("label", True)
    known = label.strip().lower() if isinstance(label, str) else label
    if not isinstance(known, bool | int | float | str) or known not in WANTED:
        raise DataError(f"{place}: label is {label!r}; it must be true or false, or 1 or 0")
    return WANTED[known]


def shaped_records(path: Path, account: Account) -> Iterator[tuple[dict[str, Any], Shape, str]]:
    """(record, its shape, its file and line) for every record. Raises DataError; see `read_conversations`."""
    first: Shape | None = None
    unread = account.unread.setdefault(str(path), Counter())
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
        account.files[str(path)] = (shape.name, account.files.get(str(path), ("", 0))[1] + 1)
        unread.update(unread_fields(record, shape.known | READ_ELSEWHERE))
        yield record, shape, place


READ_ELSEWHERE = frozenset({"check"})
"""Fields of `Conversation.extra` that other modules read: PPO's checkers."""


def records(path: Path) -> Iterator[tuple[Any, str]]:
    """(object, its place) of a file of JSON lines ("path:line") or of one JSON list ("path[index]").

    Raises DataError when the file cannot be read or is not JSON.
    """
    try:
        text = read_text(path)
    except DataError as error:
        remedy = None if os.path.lexists(path) else how_to_make(path)
        raise DataError(f"{error}; {remedy}" if remedy else str(error)) from None
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            pass  # the file may have one list per line; the caller refuses those with a message of its own
        else:
            yield from ((record, f"{path}[{index}]") for index, record in enumerate(found))
            return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line, object_pairs_hook=_object), f"{path}:{number}"
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _conversation(record: dict[str, Any], shape: Shape, place: str) -> Conversation:
    try:
        messages = shape.messages(record)
    except KeyError as error:
        raise DataError(f"{place}: not {shape.name}: there is no {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: not {shape.name}: {error}") from None
    extra = {name: value for name, value in record.items() if name not in shape.known}
    return Conversation(messages, record.get("user"), extra, place)


def split_conversations(records: Sequence[Record], proportions: Sequence[float]) -> dict[Split, list[Record]]:
    """Records with the same first prompt or the same user go to the same split, transitively.

    Two prompts are the same if they differ only in case and white space. Exact repetitions are left out; records with
    different "check" fields are not repetitions. `proportions` are the shares of train, validation and test, relative
    to their sum.
    """
    distinct = [record for record, _ in dict.fromkeys((record, _check(record)) for record in records)]
    if repeated := len(records) - len(distinct):
        log.warning("%d of %d records repeat another one word for word, and are left out", repeated, len(records))
    groups = _Groups()
    for record in distinct:
        if record.user is not None:
            groups.join(_first_prompt(record), f"user {record.user}")
    splits: dict[Split, list[Record]] = {split: [] for split in SPLITS}
    for record in distinct:
        splits[split_of(groups.name(_first_prompt(record)), proportions)].append(record)
    return splits


def _check(record: HasPrompt) -> str:
    return json.dumps(record.extra.get("check"), sort_keys=True) if isinstance(record, Conversation) else ""


class _Groups:
    """Keys in groups that can be joined (union-find). A group's name is its smallest key, in any order of joining."""

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
