"""Find files of a corpus that share an n-gram of words with evaluation data."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.code.rules import NGRAM
from megagpt.data.corpus.grams import ngram_hashes, words
from megagpt.data.files import read_input
from megagpt.errors import DataError

_LETTER = re.compile(rb"[^0-9_]")


@dataclass(frozen=True)
class Evaluation:
    """The n-grams of words of all evaluation sets."""

    hashes: np.ndarray
    """uint64 [n]: hashes of the n-grams, sorted, without repetition."""
    owners: np.ndarray
    """int64 [n]: index in `names` of the first file that has each n-gram."""
    names: list[str]
    """Names of the files."""
    length: int
    """Number of words in an n-gram."""

    def overlap(self, text: str) -> str | None:
        """'file name: "n-gram"' for the first n-gram that `text` shares with an evaluation set; None without one."""
        found = words(text)
        hashes = ngram_hashes(found, self.length)
        if not len(self.hashes) or not len(hashes):
            return None
        places = np.searchsorted(self.hashes, hashes)
        places[places == len(self.hashes)] = 0
        hits = np.flatnonzero(self.hashes[places] == hashes)
        if not len(hits):
            return None
        run = b" ".join(found[hits[0] : hits[0] + self.length]).decode(errors="replace")
        return f'{self.names[self.owners[places[hits[0]]]]}: "{run}"'

    def save(self, path: Path) -> None:
        """Write it to `path`, for `load`."""
        with path.open("wb") as file:
            np.savez(file, hashes=self.hashes, owners=self.owners, names=np.array(self.names), length=self.length)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """The evaluation data that was saved at `path`."""
        with np.load(path) as file:
            return cls(file["hashes"], file["owners"], file["names"].tolist(), int(file["length"]))


def read_evaluation(files: Sequence[str | Path], length: int = NGRAM) -> tuple[Evaluation, int]:
    """The n-grams of `length` words of jsonl(.gz) `files`, and the number of records that are too short to have one.

    Takes n-grams of every string of a record, and of a HumanEval prompt joined with its solution, with and without
    docstrings. Raises DataError with file and line when a record is not a JSON object.
    """
    hashes, owners, short = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for number, path in enumerate(files):
        for record in _records(Path(path)):
            found = np.concatenate([hashes[0], *(_telling(words(text), length) for text in _texts(record))])
            short += not len(found)
            hashes.append(found)
            owners.append(np.full(len(found), number))
    kept, first = np.unique(np.concatenate(hashes), return_index=True)
    names = [Path(path).name for path in files]
    return Evaluation(kept, np.concatenate(owners)[first], names, length), short


def _telling(found: list[bytes], length: int) -> np.ndarray:
    """Hashes of the n-grams in which at least half of the words have letters; others are only rows of numbers."""
    letters = np.fromiter((_LETTER.search(word) is not None for word in found), np.int64, len(found))
    sums = np.concatenate([[0], np.cumsum(letters)])
    hashes = ngram_hashes(found, length)
    return hashes[2 * (sums[length:] - sums[: len(hashes)]) >= length] if len(hashes) else hashes


def _records(path: Path) -> Iterator[dict[str, Any]]:
    line = 0
    try:
        for line, content in enumerate(read_input(path).split(b"\n"), 1):
            if content.strip():
                record = json.loads(content)
                if not isinstance(record, dict):
                    raise DataError(f"{path}:{line}: {type(record).__name__}, not a JSON object of evaluation data")
                yield record
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{line}: not JSON (--decontaminate takes jsonl and jsonl.gz): {error}") from None


def _texts(record: dict[str, Any]) -> Iterator[str]:
    yield from _strings(record)
    prompt, solution = record.get("prompt"), record.get("canonical_solution")
    if isinstance(prompt, str) and isinstance(solution, str):
        program = prompt + solution + str(record.get("suffix", ""))
        yield program
        yield _without_docstrings(program)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _without_docstrings(program: str) -> str:
    """The program without docstrings and comments, like a copy of the bare code; "" when it is not Python."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
