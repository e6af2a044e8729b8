"""All runs of words of the evaluations, and the count of the documents that have each of them.

The first of two passes: every task counts its shard in an array as long as the index, and the arrays are added, so that
the sum is the same for any number of tasks. An index takes about 24 bytes for each run, a task's counts 4 more.
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
"""Words in a run (arXiv 2005.14165, appendix C)."""


@dataclass(frozen=True)
class Index:
    """The runs of `length` words of all evaluation files, as 64-bit hashes.

    That two different runs have one hash is expected once in 2^64 / runs: with ten million runs, once in two trillion
    words of a corpus.
    """

    hashes: np.ndarray
    """Sorted, without repetition: uint64 [runs]."""
    owners: np.ndarray
    """Number of the first file, in `names`, that has each of them: uint16 [runs]."""
    names: list[str]
    length: int
    """Words in a run."""

    def find(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Runs of the evaluations in a text, given the hashes of its words (`word_hashes`).

        Returns for each, in the text's order, the number of its first word and its place in `hashes`: int64 [found].
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
        """Counts before the first document: uint32 [runs]."""
        return np.zeros(len(self.hashes), np.uint32)

    def count(self, text: str, counts: np.ndarray) -> bool:
        """Count a document once for each run that it has; whether it has any."""
        places = self.find(word_hashes(text))[1]
        counts[np.unique(places)] += 1
        return len(places) > 0

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def _beginnings(self) -> np.ndarray:
        """Which highest bits some hash has: most words of a corpus need no search. bool [8 to 16 times the runs]."""
        known = np.zeros(1 << (64 - int(self._shift)), bool)
        known[self.hashes >> self._shift] = True
        return known

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - max(10, len(self.hashes).bit_length() + 3))

    def save(self, path: Path) -> None:
        """Write it to `path`, for load."""
        with path.open("wb") as file:
            np.savez(file, hashes=self.hashes, owners=self.owners, names=np.array(self.names, str), length=self.length)

    @classmethod
    def load(cls, path: Path) -> "Index":
        """The index that was saved at `path`."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["hashes"], file["owners"], file["names"].tolist(), int(file["length"]))


def read_index(files: Sequence[str | Path], length: int = NGRAM) -> tuple[Index, int]:
    """The runs of `length` words (at most 64) of evaluation files, and how many records are too short to have one.

    A record's text is all of its strings (`records`). Records that are too short cannot be found in a corpus; a warning
    says how many there are in which file. Raises DataError, naming file and line, for a record that cannot be read,
    and for a file without any.
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
