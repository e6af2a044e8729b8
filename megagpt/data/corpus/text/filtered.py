"""Documents between the filter and the corpus: shards of documents, and the findings of later steps about them.

A document has a number in its shard, and so a place in the order of the input, after all documents of the reference
corpora. A step writes its findings as a table of places to drop; the documents are only written again at the end.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megagpt.data.corpus.duplicates.exact import found_in, hash_texts
from megagpt.data.corpus.duplicates.steps import name_of, write_names
from megagpt.data.corpus.duplicates.tables import place_of
from megagpt.data.corpus.shards import read_shard, shard_name, write_shard
from megagpt.data.corpus.tally import Tally
from megagpt.data.corpus.text.passages import edited, passages
from megagpt.data.corpus.text.recipe import Recipe
from megagpt.data.files import write_atomic

SHARE, URLS, TEXTS, PASSAGES, NEAR = "share", "same_urls", "same_texts", "same_passages", "near"
"""Names of the findings, in the order of the steps: folders of tables, and for SHARE the file of a threshold."""

RULES = {
    URLS: ("duplicate URL", "the same URL as {}"),
    TEXTS: ("exact duplicate", "the same text as {}"),
    NEAR: ("near-duplicate", "like {}"),
}
"""For each finding: the rule that drops the documents, and the reason."""


@dataclass(frozen=True)
class Plan:
    """Settings that all steps use."""

    work: Path
    recipe: Recipe
    references: int
    """Number of shards of reference corpora; their places come first."""
    samples: int

    @property
    def first_place(self) -> int:
        """Place of the first document that does not belong to a reference corpus."""
        return place_of(self.references)

    @property
    def compared(self) -> list[tuple[str, str]]:
        """(finding, name of its phase) for each search for exact repetitions."""
        wanted = self.recipe.duplicates
        if wanted is None:
            return []
        passages = (wanted.lines or wanted.spans, PASSAGES, "passages")
        switches = ((wanted.urls, URLS, "urls"), (wanted.documents, TEXTS, "exact"), passages)
        return [(what, name) for switch, what, name in switches if switch]


def write_filtered(plan: Plan, rank: int, documents: Iterable[dict[str, Any]]) -> None:
    """Write a shard of documents, and files with their names, hashes and scores."""
    names, scores = [], []
    hashes = [np.zeros((0, 4), np.uint64)]

    def noted() -> Iterator[dict[str, Any]]:
        for document in documents:
            names.append(document["source"])
            scores.append(-1.0 if document["score"] is None else document["score"])
            hashes.append(hash_texts([(document["url"] or "").strip(), document["text"]]).reshape(1, 4))
            yield document

    write_shard(plan.work / "filtered" / shard_name(rank), noted())
    write_names(plan.work, plan.references + rank, names)
    write_atomic(plan.work / "hashes" / f"{rank:05d}", np.concatenate(hashes).data)
    write_atomic(plan.work / "scores" / f"{rank:05d}", np.array(scores, "<f8").data)


def read_hashes(plan: Plan, rank: int) -> np.ndarray:
    """uint64 [documents, 4]: 128-bit hashes of a shard's URLs (columns 0 and 1) and texts (columns 2 and 3)."""
    return np.fromfile(plan.work / "hashes" / f"{rank:05d}", "<u8").reshape(-1, 4)


NO_URL = hash_texts([""])[0]
"""uint64 [2]: the URL hash of a document without a URL."""


Reason = str | Callable[[], str]


class Fate(NamedTuple):
    """The documents and passages of a shard that the findings drop."""

    dropped: dict[int, tuple[str, Reason]]
    """{number of a document: (rule that drops it, reason)}."""
    cut: set[int]
    """Numbers of the passages to cut, counted over all documents that reach the step PASSAGES."""


def fate_of(plan: Plan, rank: int, found: tuple[str, ...]) -> Fate:
    """The documents and passages of a shard that the findings named in `found` drop."""
    dropped: dict[int, tuple[str, Reason]] = {}
    shard = plan.references + rank
    if SHARE in found:
        least = json.loads((plan.work / SHARE).read_bytes())
        scores = np.fromfile(plan.work / "scores" / f"{rank:05d}", "<f8")
        for number in np.flatnonzero(scores < least).tolist():
            dropped[number] = "quality", f"score {scores[number]:.4f}; documents from {least:.4f} on are kept"
    for name in RULES.keys() & set(found):
        rule, reason = RULES[name]
        for number, first in found_in(plan.work / name, shard).items():
            dropped[number] = rule, partial(_reason, reason, plan.work, first)
    return Fate(dropped, set(found_in(plan.work / PASSAGES, shard)) if PASSAGES in found else set())


def _reason(reason: str, work: Path, place: int) -> str:
    return reason.format(name_of(work, place))


def remaining(
    plan: Plan, rank: int, found: tuple[str, ...], tally: Tally | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of the documents that the findings named in `found` leave, without repeated passages.

    tally: counts the dropped documents, if given
    """
    fate, at = fate_of(plan, rank, found), 0
    for number, record in enumerate(read_shard(plan.work / "filtered" / shard_name(rank))):
        drop, cut = fate.dropped.get(number), []
        if PASSAGES in found and (drop is None or drop[0] == RULES[NEAR][0]):
            spans, _ = passages(record["text"], plan.recipe.duplicates)
            cut = [span for index, span in enumerate(spans, at) if index in fate.cut]
            at += len(spans)
            record["text"], reason = edited(record["text"], cut, plan.recipe)
            drop = ("duplicate passages", reason) if reason else drop
        if drop is None:
            if cut and tally:
                tally.redact(record["source"], Counter({"duplicate passage": len(cut)}))
            yield number, record
        elif tally:
            tally.drop(drop[0], record["source"], record["bytes"], drop[1])
