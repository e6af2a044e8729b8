"""Find the examples of evaluations that a corpus contains, to evaluate without them (arXiv 2005.14165, appendix C).

This differs from cutting text out of a corpus: here every set has its own run length, no run is ignored, and examples
are removed from the sets while the corpus stays unchanged. Each task reads shards; results are combined by logical or.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.grams import run_hashes
from megagpt.data.corpus.text.decontamination.index import Index
from megagpt.data.corpus.text.decontamination.records import Record, read_records
from megagpt.data.corpus.text.decontamination.words import word_hashes
from megagpt.data.files import atomic_file, file_sha256, write_atomic
from megagpt.errors import ConfigError, DataError

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 8, 13
"""GPT-3's bounds of the number of words in a run: the lower one avoids chance matches, the upper one saves time."""

PERCENTILE = 5

VERSION = 1
"""Version of the format of clean.json."""


@dataclass(frozen=True)
class Examples:
    """An evaluation file."""

    path: Path
    length: int
    """Number of words in a run."""
    numbers: np.ndarray
    """int64 [records]: number of each record in the file, from 1."""
    runs: np.ndarray
    """uint64 [runs]: hashes of the runs of all records, one record after the other."""
    owners: np.ndarray
    """int64 [runs]: index in `numbers` of each run's record."""

    @property
    def short(self) -> int:
        """Number of records without a run; they always count as clean."""
        return len(self.numbers) - len(np.unique(self.owners))


@dataclass(frozen=True)
class Evaluations:
    """Evaluation files, and one index of their runs for each run length."""

    sets: list[Examples]
    indexes: list[Index]

    def nothing_found(self) -> list[np.ndarray]:
        """For each index bool [runs], all False: whether a run was found, before the first document."""
        return [np.zeros(len(index.hashes), bool) for index in self.indexes]

    def look(self, text: str, found: list[np.ndarray]) -> None:
        """Mark the runs of the document `text` in `found`."""
        words = word_hashes(text)
        for index, marks in zip(self.indexes, found, strict=True):
            marks[index.find(words)[1]] = True

    def clean(self, examples: Examples, found: list[np.ndarray]) -> np.ndarray:
        """bool [records]: whether no run of the record was found."""
        for index, marks in zip(self.indexes, found, strict=True):
            if index.length == examples.length:
                dirty = examples.owners[marks[np.searchsorted(index.hashes, examples.runs)]]
        clean = np.ones(len(examples.numbers), bool)
        clean[dirty] = False
        return clean

    def write(self, found: list[np.ndarray], output: str | Path) -> dict[str, Any]:
        """Write the clean examples to the folder `output`: FILE.clean.jsonl for every set, and clean.json.

        A line is {"record": its number in the file, "value": the record}. Returns the content of clean.json; its format
        is in docs/decontamination.md.
        """
        output = Path(output)
        sets = {}
        for examples in self.sets:
            clean = self.clean(examples, found)
            kept = set(examples.numbers[clean].tolist())
            name = f"{examples.path.name}.clean.jsonl"
            with atomic_file(output / name) as file:
                for record in read_records(examples.path):
                    if record.number in kept:
                        line = {"record": record.number, "value": record.value}
                        file.write(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
            sets[examples.path.name] = {
                "sha256": file_sha256(examples.path),
                "ngram": examples.length,
                "records": len(clean),
                "short": examples.short,
                "clean": int(clean.sum()),
                "clean_share": float(clean.mean()),
                "clean_file": name,
                "dirty_records": examples.numbers[~clean].tolist(),
            }
        about = {"version": VERSION, "sets": sets}
        write_atomic(output / "clean.json", json.dumps(about, indent=2).encode() + b"\n")
        return about


def read_evaluations(files: Sequence[str | Path], lengths: Mapping[str, int] | None = None) -> Evaluations:
    """Read evaluation files.

    lengths: number of words in a run by file name, for files that need another than `run_length` (GPT-3 took 2 for
        anagrams and 7 for symbols inserted into words)

    Raises DataError for a record that cannot be read and for a file without records; ConfigError for two files with one
    name and for a length of an unknown file.
    """
    paths, lengths = [Path(file) for file in files], dict(lengths or {})
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"evaluation files need different names: {', '.join(map(str, paths))}")
    if unknown := lengths.keys() - set(names):
        raise ConfigError(
            f"a run length is given for {', '.join(sorted(unknown))}, but the files are {', '.join(names)}"
        )
    sets = [_examples(path, read_records(path), lengths.get(path.name)) for path in paths]
    indexes = []
    for length in sorted({examples.length for examples in sets}):
        mine = [examples for examples in sets if examples.length == length]
        hashes, first = np.unique(np.concatenate([examples.runs for examples in mine]), return_index=True)
        owners = np.repeat(np.arange(len(mine), dtype=np.uint16), [len(examples.runs) for examples in mine])[first]
        indexes.append(Index(hashes, owners, [examples.path.name for examples in mine], length))
    return Evaluations(sets, indexes)


def run_length(words: Sequence[int]) -> int:
    """The 5th percentile of the examples' lengths in words, between 8 and 13."""
    return int(np.clip(np.floor(np.percentile(words, PERCENTILE)), SHORTEST, LONGEST))


def _examples(path: Path, records: Iterable[Record], length: int | None) -> Examples:
    numbers, words = [], []
    for record in records:
        numbers.append(record.number)
        words.append(word_hashes(record.text))
    if not numbers:
        raise DataError(f"{path} holds no record")
    length = length or run_length([len(hashes) for hashes in words])
    runs = [run_hashes(hashes, length) for hashes in words]
    owners = np.repeat(np.arange(len(runs)), [len(hashes) for hashes in runs])
    examples = Examples(path, length, np.array(numbers), np.concatenate(runs), owners)
    if examples.short:
        log.warning("%s: %d of %d records have fewer than %d words", path, examples.short, len(numbers), length)
    return examples
