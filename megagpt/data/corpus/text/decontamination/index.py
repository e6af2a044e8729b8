"""The first of two passes: count the documents of a corpus that have each run of words of the evaluations.

Every task counts its shard in an array as long as the index. The arrays are added, so the sum is the same for any
number of tasks. An index takes about 24 bytes per run, and a task's counts 4 more.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megagpt.data.corpus.grams import run_hashes
from megagpt.data.corpus.text.decontamination.records import read_records
from megagpt.data.corpus.text.decontamination.words import word_hashes
from megagpt.errors import DataError

log = logging.getLogger(__name__)

NGRAM = 13
"""Number of words in a run (arXiv 2005.14165, appendix C)."""


@dataclass(frozen=True)
class Index:
    """The runs of `length` words of all evaluation files, as 64-bit hashes.

    A word of a corpus gives a false match with probability runs / 2^64: with ten million runs, about one false match in
    two trillion words.
    """

    hashes: np.ndarray
    """uint64 [runs], sorted, without repetition."""
    owners: np.ndarray
    """uint16 [runs]: index in `names` of the first file that has each run."""
    names: list[str]
    """Names of the files."""
    length: int
    """Number of words in a run."""

    def find(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Runs of the evaluations in a text, from the hashes of its words (`word_hashes`), uint64 [words].

        Returns the number of the first word of each run in the order of the text, and the index of each run in
        `hashes`, both int64 [found].
        """
        runs = run_hashes(words, self.length)
        if not len(self.hashes) or not len(runs):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        maybe = np.flatnonzero(self._beginnings[runs >> self._shift])
        places = np.searchsorted(self.hashes, runs[maybe])
        places[places == len(self.hashes)] = 0
        equal = self.hashes[places] == runs[maybe]
        return maybe[equal], places[equal]

    def no_counts(self) -> np.ndarray:
        """uint32 [runs]: zeros, the counts before the first document."""
        return np.zeros(len(self.hashes), np.uint32)

    def count(self, text: str, counts: np.ndarray) -> bool:
        """Add 1 to the count of each run in a document. Returns whether it has any."""
        places = self.find(word_hashes(text))[1]
        counts[np.unique(places)] += 1
        return len(places) > 0

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def _beginnings(self) -> np.ndarray:
        """bool [8 to 16 times the runs]: whether a hash has these highest bits. So most words need no search."""
        known = np.zeros(1 << (64 - int(self._shift)), bool)
        known[self.hashes >> self._shift] = True
        return known

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - max(10, len(self.hashes).bit_length() + 3))

    def save(self, path: Path) -> None:
        """Write it to `path`, for `load`."""
        with path.open("wb") as file:
            np.savez(file, hashes=self.hashes, owners=self.owners, names=np.array(self.names, str), length=self.length)

    @classmethod
    def load(cls, path: Path) -> "Index":
        """The index that was saved at `path`."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["hashes"], file["owners"], file["names"].tolist(), int(file["length"]))


def read_index(files: Sequence[str | Path], length: int = NGRAM) -> tuple[Index, int]:
    """The runs of `length` words (at most 64) of evaluation files, and the number of records too short to have one.

    A record's text consists of all its strings (see `records`). Records that are too short cannot be found in a corpus;
    a warning gives their number for each file. Raises DataError with file and line for a record that cannot be read,
    and for a file without records.
    """
    hashes, owners, short = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)], 0
    for number, path in enumerate(files):
        records, missed = 0, 0
        for record in read_records(path):
            runs = run_hashes(word_hashes(record.text), length)
            hashes.append(runs)
            owners.append(np.full(len(runs), number, np.uint16))
            records, missed = records + 1, missed + (not len(runs))
        if not records:
            raise DataError(f"{path} holds no record")
        if missed:
            log.warning(
                "%s: %d of %d records have fewer than %d words and cannot be found", path, missed, records, length
            )
        short += missed
    kept, first = np.unique(np.concatenate(hashes), return_index=True)
    names = [Path(path).name for path in files]
    return Index(kept, np.concatenate(owners)[first], names, length), short
