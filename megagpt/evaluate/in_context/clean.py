"""Which examples of a task are in the clean subset: `megagpt data overlap` did not find them in the training data.

docs/decontamination.md describes the folder that is read here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.grams import run_hashes
from megagpt.data.corpus.text.decontamination.records import read_records
from megagpt.data.corpus.text.decontamination.words import word_hashes
from megagpt.data.files import file_sha256, read_input
from megagpt.errors import DataError
from megagpt.evaluate.in_context.outcomes import example_ids

RUN = 8
"""Words in a row by which a text is looked up in records."""


class CleanSubsets:
    """The evaluation files in which `megagpt data overlap` looked for dirty examples."""

    def __init__(self, folder: str | Path, data: str | Path) -> None:
        """Read them.

        folder: what `megagpt data overlap` wrote. data: where the evaluation files are, at any depth; what is not there
        is left out. Raises DataError where a file is not the one that was looked at.
        """
        self._words: dict[_Record, np.ndarray] = {}
        self._dirty: set[_Record] = set()
        for path, dirty in _files(Path(folder), Path(data)):
            self._dirty |= {(path, number) for number in dirty}
            self._words |= {(path, record.number): word_hashes(record.text) for record in read_records(path)}
        self._index = lru_cache(maxsize=None)(self._indexed)

    def clean(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
        """Whether each example of a task is clean, by its id in outcomes. `examples`: all of the evaluated part.

        Readers give examples other fields than the files have, so an example is looked up by its words. It is of the
        record that has its longest text, and of several of these of the one that has the most of its words, each text
        as a whole; they must be at least half of its words. Where records are equal in this, it is clean if all are.
        An example that no file has is left out: nobody looked for it.
        """
        found = {}
        for name, example in zip(example_ids(examples), examples, strict=True):
            texts = sorted((words for text in _texts(example) if len(words := word_hashes(text))), key=len)[::-1]
            held = self._held(texts)
            most = max(held.values(), default=0)
            if held and 2 * most >= sum(map(len, texts)):
                found[name] = self._dirty.isdisjoint(record for record, words in held.items() if words == most)
        return found

    def _held(self, texts: list[np.ndarray]) -> dict["_Record", int]:
        """How many words of `texts` are in each record that has the longest one that any record has."""
        held: dict[_Record, int] = {}
        for words in texts:
            length = min(len(words), RUN)
            index = self._index(length)
            sets = [index.get(run, set()) for run in run_hashes(words, length).tolist()]
            for record in set.intersection(set(held) or sets[0], *sets):
                held[record] = held.get(record, 0) + len(words)
        return held

    def _indexed(self, length: int) -> dict[int, set["_Record"]]:
        """The records that have each run of `length` words, by its hash."""
        index: dict[int, set[_Record]] = {}
        for record, words in self._words.items():
            for run in run_hashes(words, length).tolist():
                index.setdefault(run, set()).add(record)
        return index


_Record = tuple[Path, int]
"""Of an evaluation file: its number in it."""


def _files(folder: Path, data: Path) -> Iterator[tuple[Path, set[int]]]:
    """The evaluation files that are in `data`, each with the numbers of its dirty records."""
    path = folder / "clean.json"
    try:
        sets = json.loads(read_input(path))["sets"]
        known = {name: (about["sha256"], set(about["dirty_records"])) for name, about in sets.items()}
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not what `megagpt data overlap` writes: {error!r}") from None
    for name, (sha256, dirty) in known.items():
        paths = sorted(data.rglob(name))
        same = [candidate for candidate in paths if file_sha256(candidate) == sha256]
        if paths and not same:
            raise DataError(f"{paths[0]} is not the file that {path} is about: run `megagpt data overlap` on it again")
        if same:
            yield same[0], dirty


def _texts(value: Any) -> Iterator[str]:
    """All texts of an example, each once."""
    seen: set[str] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if item not in seen:
                seen.add(item)
                yield item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
