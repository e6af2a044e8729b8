"""Reads the files of tasks as records with checked fields; each record knows its file and line for errors."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from megagpt.data.files import file_sha256, read_input
from megagpt.errors import ConfigError, DataError

Doc = dict[str, Any]
"""An example's fields for a task's templates. `id` is unique in its part."""


class Docs(list[Doc]):
    """One part of a task's data, such as its test part, in the order of the file."""

    @property
    def features(self) -> Doc:
        """An example whose keys are the field names; lm-eval replaces a template that is a field name by the field."""
        return self[0]


class Splits(dict[str, Docs]):
    """The parts of a task's data by name, in the format of lm-eval's `custom_dataset`."""

    def __init__(self, source: dict[str, str], notes: Iterable[str] = (), **parts: Docs):
        """source: {name of a file that was read: SHA-256}. notes: notes for readers of the results."""
        super().__init__(parts)
        self.source = source
        self.notes = list(notes)


class Record:
    """One record of a file. Each getter checks the field that it returns, and raises DataError."""

    def __init__(self, fields: Any, place: str, line: int):
        self.place = place
        self.line = line
        if not isinstance(fields, dict):
            raise self.error(f"the record is not an object with named fields but {_shortened(fields)}")
        self._fields = fields

    def error(self, what: str) -> DataError:
        """An error that names the record's file and line."""
        return DataError(f"{self.place}: {what}")

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def get(self, key: str) -> Any:
        """The field `key`, of any type."""
        if key not in self._fields:
            raise self.error(f"the field {key} is missing; there are {', '.join(map(str, self._fields)) or 'none'}")
        return self._fields[key]

    def text(self, key: str) -> str:
        """The field `key`, a text that is not empty."""
        return self._text(key, self.get(key))

    def texts(self, key: str, count: int | None = None) -> list[str]:
        """The field `key`, a list of `count` texts (by default two or more) that are not empty."""
        values = self.get(key)
        if not isinstance(values, list) or (len(values) != count if count else len(values) < 2):
            raise self.error(f"the field {key} must be {count or 'two or more'} texts, not {_shortened(values)}")
        return [self._text(f"{key}[{at}]", value) for at, value in enumerate(values)]

    def index(self, key: str, below: int) -> int:
        """The field `key`, an integer from 0 to below - 1."""
        value = self.get(key)
        if type(value) is not int or not 0 <= value < below:
            raise self.error(f"the field {key} must be a whole number from 0 to {below - 1}, not {_shortened(value)}")
        return value

    def one_of(self, key: str, values: Collection[str]) -> str:
        """The field `key`, one of `values`."""
        value = self.get(key)
        if value not in list(values):
            raise self.error(f"the field {key} must be one of {', '.join(values)}, not {_shortened(value)}")
        return value

    def record(self, key: str) -> "Record":
        """The field `key`, a record."""
        return Record(self.get(key), f"{self.place}, {key}", self.line)

    def records(self, key: str) -> "list[Record]":
        """The field `key`, a list of records that is not empty."""
        values = self.get(key)
        if not isinstance(values, list) or not values:
            raise self.error(f"the field {key} must be a list of records, not {_shortened(values)}")
        return [Record(value, f"{self.place}, {key}[{at}]", self.line) for at, value in enumerate(values)]

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"the field {key} must be a text that is not empty, not {_shortened(value)}")
        return value


class Folder:
    """A folder of data sets with the layout of docs/in_context_tasks.md. Files may be compressed (name ends in .gz)."""

    def __init__(self, data: str | Path | None):
        """Raises ConfigError when no folder is given, DataError when the folder does not exist."""
        if data is None:
            raise ConfigError("its examples are read from files: give their folder with data=FOLDER")
        self.path = Path(data)
        if not self.path.is_dir():
            raise DataError(f"there is no folder {data}: give the folder of the tasks' data sets with data=FOLDER")
        self.source: dict[str, str] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file `name`."""
        return self._path_of(name) is not None

    def jsonl(self, name: str) -> Iterator[Record]:
        """The records of a file with one JSON object per line. Raises DataError."""
        path, text = self._read(name)
        for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            place = f"{path}:{number}"
            try:
                yield Record(json.loads(line), place, number)
            except ValueError as error:
                raise DataError(f"{place}: not a record in JSON ({error})") from None

    def lines(self, name: str) -> list[str]:
        """The stripped lines of a text file, without empty ones. Raises DataError."""
        _, text = self._read(name)
        return [line.strip() for line in text.split("\n") if line.strip()]

    def json(self, name: str) -> Record:
        """The record of a JSON file. Raises DataError."""
        path, text = self._read(name)
        try:
            return Record(json.loads(text), str(path), 1)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None

    def table(self, name: str, delimiter: str = ",") -> Iterator[Record]:
        """The rows of a table whose first row names the columns. Raises DataError."""
        path, text = self._read(name)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line = 1
        try:
            columns = next(rows, [])
            line = rows.line_num + 1
            for row in rows:
                place = f"{path}:{line}"
                if len(row) != len(columns):
                    raise DataError(f"{place}: {len(row)} cells; the first row has {len(columns)}")
                yield Record(dict(zip(columns, row, strict=True)), place, line)
                line = rows.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not a row of the table ({error})") from None

    def docs(self, records: Iterable[Record], doc: Callable[[Record], Doc | None]) -> Docs:
        """The results of `doc` for all records, except None. An example without `id` gets its line number as id.

        Raises DataError for two examples with the same id.
        """
        docs, places = Docs(), dict[str, str]()
        for record in records:
            made = doc(record)
            if made is None:
                continue
            made = {"id": str(record.line)} | made
            if made["id"] in places:
                raise record.error(f"the id {made['id']} is also that of {places[made['id']]}")
            places[made["id"]] = record.place
            docs.append(made)
        return docs

    def splits(self, notes: Iterable[str] = (), **parts: Docs) -> Splits:
        """The parts of a task. Raises DataError when a part has no examples."""
        for name, docs in parts.items():
            if not docs:
                raise DataError(f"no examples for the part {name} in {', '.join(self.source)} of {self.path}")
        return Splits(self.source, notes, **parts)

    def _path_of(self, name: str) -> Path | None:
        paths = [self.path / name, self.path / f"{name}.gz"]
        return next((path for path in paths if path.is_file()), None)

    def _read(self, name: str) -> tuple[Path, str]:
        path = self._path_of(name)
        if path is None:
            raise DataError(
                f"there is no {name} (or {name}.gz) in {self.path}: data=FOLDER must have the data sets of the tasks"
                " as docs/in_context_tasks.md says"
            )
        try:
            text = read_input(path).decode()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise DataError(f"{path}:{line}: not UTF-8") from None
        if not text.strip():
            raise DataError(f"{path} is empty")
        self.source[path.relative_to(self.path).as_posix()] = file_sha256(path)
        return path, text


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
