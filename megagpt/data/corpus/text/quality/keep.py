"""Rules that keep documents by score. Random numbers are hashes of the text, so they are the same in every run."""

import json
from pathlib import Path

import numpy as np
import xxhash

from megagpt.data.files import open_input, read_text
from megagpt.errors import DataError

ALPHA = 9.0
"""GPT-3's value (arXiv 2005.14165, appendix A); The Pile took 3 (arXiv 2101.00027)."""


def draw(key: str, purpose: str, seed: int = 0) -> float:
    """A pseudo-random number between 0 and 1, both excluded; a function of the arguments."""
    salt = xxhash.xxh3_64_intdigest(f"{purpose} {seed}".encode())
    digits = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"), salt) >> 12
    return (digits + 0.5) * 2.0**-52


def pareto_probability(score: float, alpha: float = ALPHA) -> float:
    """The probability that a document with this score is kept: (2 - score)^-alpha.

    GPT-3 keeps it if np.random.pareto(alpha) > 1 - score. NumPy samples the Lomax distribution, which begins at 0 and
    has P(draw > x) = (1 + x)^-alpha. A Pareto distribution that begins at 1 would keep everything.
    """
    return (2 - score) ** -alpha


def keep_pareto(score: float, key: str, alpha: float = ALPHA, seed: int = 0) -> bool:
    """Whether GPT-3's rule keeps a document. key: the document's text, or another identifier of it"""
    return draw(key, "pareto", seed) < pareto_probability(score, alpha)


def top_threshold(scores: np.ndarray, share: float) -> float:
    """The smallest score in the top `share`, 0 to 1, of `scores`.

    scores: float64 [records], of a corpus or a sample of it, from `megagpt data quality score`; NaN (malformed records)
        is ignored

    Documents that tie with this score are in the top share too. Raises DataError without scores or for a share out of
    range.
    """
    known = np.sort(scores[~np.isnan(scores)])
    if not len(known):
        raise DataError("there are no scores, so there is no top share of them")
    if not 0 < share <= 1:
        raise DataError(f"the top share is {share:g}: give a share above 0 and at most 1, such as 0.1")
    return float(known[-max(1, round(share * len(known)))])


def read_scores(path: str | Path) -> np.ndarray:
    """float64 [records]: scores in a .npy or .jsonl of `megagpt data quality score`; NaN for malformed records.

    Raises DataError for another file.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            with open_input(path) as file:
                return np.load(file, allow_pickle=False).astype(np.float64)
        return np.array([json.loads(line)["score"] for line in read_text(path).split("\n") if line], np.float64)
    except (DataError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no scores of `megagpt data quality score`: {error}") from None
