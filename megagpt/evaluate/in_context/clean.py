"""Finds a task's clean subset: the examples that `megagpt data overlap` did not find in the training data.

docs/decontamination.md describes the folder that this module reads.
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
"""Number of consecutive words by which a text is looked up in records."""


class CleanSubsets:
    """The evaluation files in which `megagpt data overlap` looked for dirty examples."""

    def __init__(self, folder: str | Path, data: str | Path) -> None:
        """Read the files.

        folder: output of `megagpt data overlap`. data: folder that has the evaluation files at any depth; missing files
        are left out. Raises DataError when a file's content differs from the file that was searched.
        """
        self._words: dict[_Record, np.ndarray] = {}
        self._dirty: set[_Record] = set()
        for path, dirty in _files(Path(folder), Path(data)):
            self._dirty |= {(path, number) for number in dirty}
            self._words |= {(path, record.number): word_hashes(record.text) for record in read_records(path)}
        self._index = lru_cache(maxsize=None)(self._indexed)

    def clean(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
        """{id in outcomes: whether the example is clean}. examples: all examples of the evaluated part.

        Readers rename and combine the files' fields, so an example is matched to a record by its words. Candidates are
        the records that contain the example's longest text. Among them the record wins that contains the most of the
        example's words, counting only whole texts; it must contain at least half of them. If several records win, the
        example is clean if all of them are. An example without a record is left out, because it was never searched.
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
        """Number of words of `texts` in each candidate record: those with the longest text that any record has."""
        held: dict[_Record, int] = {}
        for words in texts:
            length = min(len(words), RUN)
            index = self._index(length)
            sets = [index.get(run, set()) for run in run_hashes(words, length).tolist()]
            for record in set.intersection(set(held) or sets[0], *sets):
                held[record] = held.get(record, 0) + len(words)
        return held

    def _indexed(self, length: int) -> dict[int, set["_Record"]]:
        """{hash of a run of `length` words: records that have the run}."""
        index: dict[int, set[_Record]] = {}
        for record, words in self._words.items():
            for run in run_hashes(words, length).tolist():
                index.setdefault(run, set()).add(record)
        return index


_Record = tuple[Path, int]
"""(evaluation file, number of the record in it)."""


def _files(folder: Path, data: Path) -> Iterator[tuple[Path, set[int]]]:
    """The evaluation files found in `data`, each with the numbers of its dirty records."""
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
    """All different texts of an example."""
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
