"""Tasks of the datatrove pipelines for text, most of them one per shard. Importing this module needs datatrove."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.duplicates.exact import hash_texts, offer
from megagpt.data.corpus.duplicates.minhash import MinHash
from megagpt.data.corpus.duplicates.near import sign
from megagpt.data.corpus.duplicates.steps import SIGNED, write_names
from megagpt.data.corpus.grams import run_hashes
from megagpt.data.corpus.publish import CORPUS, load_tally, move_shards, save_tally
from megagpt.data.corpus.shards import shard_name, write_shard
from megagpt.data.corpus.tally import Tally
from megagpt.data.corpus.task import Task, read_seconds
from megagpt.data.corpus.text import references, report
from megagpt.data.corpus.text.decontamination.cutting import overlaps, pieces
from megagpt.data.corpus.text.decontamination.index import Index
from megagpt.data.corpus.text.decontamination.words import word_hashes
from megagpt.data.corpus.text.filtered import (
    NO_URL,
    PASSAGES,
    SHARE,
    TEXTS,
    URLS,
    Plan,
    fate_of,
    read_hashes,
    remaining,
    write_filtered,
)
from megagpt.data.corpus.text.inputs.links import Links
from megagpt.data.corpus.text.inputs.read import read_unit
from megagpt.data.corpus.text.inputs.units import Unit
from megagpt.data.corpus.text.limits import Decontamination
from megagpt.data.corpus.text.options import Options
from megagpt.data.corpus.text.page import Broken
from megagpt.data.corpus.text.page_filter import PageFilter
from megagpt.data.corpus.text.passages import passages
from megagpt.data.files import write_atomic

EVALUATION, LINKS = "evaluation.npz", "links.npz"
"""Files that the job writes to the work folder."""


def runs_of(text: str, words: int) -> np.ndarray:
    """uint64 [n]: distinct sorted hashes of the runs of `words` words, in lower case and without punctuation."""
    return np.unique(run_hashes(word_hashes(text), words))


class TextTask(Task):
    """A task with the plan, and the names of the findings of earlier phases."""

    def __init__(self, plan: Plan, found: tuple[str, ...] = ()):
        super().__init__(plan.work)
        self.plan, self.found = plan, found


class Filter(TextTask):
    """Reads the files of a shard and writes the documents that the rules for single documents keep."""

    type = "FILTER"
    name = "filter"

    def __init__(self, plan: Plan, options: Options):
        super().__init__(plan)
        self.options = options

    def do(self, rank: int, tasks: int) -> dict[str, float]:
        """Read and filter a shard."""
        tally, seconds = Tally(self.plan.samples), Counter()
        write_filtered(self.plan, rank, self._documents(rank, tally, seconds))
        save_tally(self.work / "tally_filter", rank, tally)
        return seconds

    def _documents(self, rank: int, tally: Tally, seconds: Counter[str]) -> Iterator[dict[str, Any]]:
        options = self.options
        links = _load_links(self.work / LINKS) if options.links else None
        with PageFilter(self.plan.recipe, options.extractor, tally, seconds) as keep:
            for values in json.loads((self.work / "sources" / f"{rank:05d}.json").read_bytes()):
                for page in read_unit(
                    Unit(*values), options.kind, links, options.key, round(options.max_record_mb * 1e6)
                ):
                    tally.find(page.bytes)
                    if isinstance(page, Broken):
                        tally.drop(page.rule, page.source, page.bytes, page.reason)
                        continue
                    tally.unread.update(page.unread)
                    if document := keep(page):
                        yield document._asdict()


def _load_links(path: Path) -> Links:
    with np.load(path) as file:
        return Links(file["hashes"], file["scores"], float(file["min_score"]))


class FindShare(Task):
    """Finds the smallest score in the best share of all documents."""

    type = "FILTER"
    name = "best share"

    def __init__(self, work: Path, shards: int, share: float):
        super().__init__(work)
        self.shards, self.share = shards, share

    def do(self, rank: int, tasks: int) -> None:
        """Select by radix, 16 bits of the scores at a time, so that memory does not grow with the corpus."""
        files = [self.work / "scores" / f"{shard:05d}" for shard in range(self.shards)]
        wanted = max(1, round(self.share * sum(file.stat().st_size // 8 for file in files)))
        prefix = 0
        for shift in (48, 32, 16, 0):
            counts = np.zeros(1 << 16, np.int64)
            for file in files:
                # Non-negative floats have the same order as their bits.
                bits = np.fromfile(file, "<f8").clip(0).view(np.uint64) >> np.uint64(shift)
                bits = bits[bits >> np.uint64(16) == prefix]
                counts += np.bincount((bits & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16)
            above = np.cumsum(counts[::-1])[::-1]
            digit = int(np.flatnonzero(above >= wanted)[-1]) if above[0] else 0
            wanted -= int(above[digit] - counts[digit])
            prefix = prefix << 16 | digit
        write_atomic(self.work / SHARE, json.dumps(float(np.uint64(prefix).view(np.float64))).encode())


class Offer(TextTask):
    """Writes the sorted hashes of the remaining URLs, texts or passages of a shard, for FindRepeated."""

    type = "DEDUP"

    def __init__(self, plan: Plan, found: tuple[str, ...], what: str):
        super().__init__(plan, found)
        self.what, self.name = what, offered(plan.work, what).name

    def do(self, rank: int, tasks: int) -> None:
        """Look at a shard."""
        folder, shard = offered(self.work, self.what), self.plan.references + rank
        if self.what == PASSAGES:
            found = [passages(record["text"], self.plan.recipe.duplicates)[1] for _, record in self._remaining(rank)]
            offer(folder, shard, np.concatenate([np.zeros((0, 2), np.uint64), *found]))
            return
        hashes = read_hashes(self.plan, rank)
        left = np.ones(len(hashes), bool)
        left[list(fate_of(self.plan, rank, self.found).dropped)] = False
        if self.what == URLS:
            left &= (hashes[:, :2] != NO_URL).any(axis=1)
        numbers = np.flatnonzero(left)
        offer(folder, shard, hashes[numbers, :2] if self.what == URLS else hashes[numbers, 2:], numbers)

    def _remaining(self, rank: int) -> Iterator[tuple[int, dict[str, Any]]]:
        return remaining(self.plan, rank, self.found)


def offered(work: Path, what: str) -> Path:
    """The folder of hashes in which FindRepeated searches."""
    return work / f"hashes_{what}"


class Sign(TextTask):
    """Writes the MinHash signatures of the remaining documents of a shard."""

    type = "DEDUP"
    name = "signatures"

    def do(self, rank: int, tasks: int) -> None:
        """Look at a shard."""
        near = self.plan.recipe.duplicates.near
        documents = remaining(self.plan, rank, self.found)
        runs = ((number, runs_of(record["text"], near.words)) for number, record in documents)
        sign(self.work / SIGNED, self.plan.references + rank, runs, MinHash(near.words, near.buckets, near.hashes))


class ReadReferences(TextTask):
    """Writes names, hashes and signatures of all documents of a shard of a reference corpus."""

    type = "READER"
    name = "reference corpora"

    def do(self, rank: int, tasks: int) -> None:
        """Look at a shard."""
        wanted, names, urls, texts = self.plan.recipe.duplicates, [], [], []

        def documents() -> Iterator[tuple[int, np.ndarray]]:
            for number, record in enumerate(references.read(self.work, rank)):
                names.append(references.name_of(record))
                urls.append(hash_texts([record.get("url") or ""])[0])
                texts.append(hash_texts([record["text"]])[0])
                if wanted.near:
                    yield number, runs_of(record["text"], wanted.near.words)

        near = wanted.near
        if near:
            sign(self.work / SIGNED, rank, documents(), MinHash(near.words, near.buckets, near.hashes))
        else:
            list(documents())
        write_names(self.work, rank, names)
        hashes = {URLS: urls, TEXTS: texts}
        for what in hashes.keys() & {what for what, _ in self.plan.compared}:
            rows = np.array(hashes[what], np.uint64).reshape(-1, 2)
            numbers = np.flatnonzero((rows != NO_URL).any(axis=1))
            offer(offered(self.work, what), rank, rows[numbers], numbers)


class RunsOfCandidates:
    """Returns the runs of words of documents whose similarity is verified."""

    def __init__(self, plan: Plan, found: tuple[str, ...]):
        self.plan, self.found = plan, found

    def __call__(self, work: Path, shard: int, numbers: set[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(number, uint64 [n] runs) of documents of a shard; shards of the reference corpora come first."""
        if shard < self.plan.references:
            documents = enumerate(references.read(work, shard))
        else:
            documents = remaining(self.plan, shard - self.plan.references, self.found)
        for number, record in documents if numbers else ():
            if number in numbers:
                yield number, runs_of(record["text"], self.plan.recipe.duplicates.near.words)


class Count(TextTask):
    """Counts the documents of a shard that have each run of words of the evaluation data."""

    type = "DECONTAMINATION"
    name = "count"

    def do(self, rank: int, tasks: int) -> None:
        """Look at a shard."""
        index = Index.load(self.work / EVALUATION)
        counts = index.no_counts()
        for _, record in remaining(self.plan, rank, self.found):
            index.count(record["text"], counts)
        write_atomic(self.work / "counts" / f"{rank:05d}", counts.data)


class AddCounts(Task):
    """Adds the counts of all shards."""

    type = "DECONTAMINATION"
    name = "add counts"

    def __init__(self, work: Path, shards: int):
        super().__init__(work)
        self.shards = shards

    def do(self, rank: int, tasks: int) -> None:
        """Add the counts. Memory holds two arrays as long as the index."""
        total = Index.load(self.work / EVALUATION).no_counts()
        for shard in range(self.shards):
            total += np.fromfile(self.work / "counts" / f"{shard:05d}", total.dtype)
        write_atomic(self.work / "counts" / "total", total.data)


class Write(TextTask):
    """Writes shards of the corpus: the remaining documents, without the text of evaluation data."""

    type = "WRITER"
    name = "write"

    def __init__(self, plan: Plan, found: tuple[str, ...], compression: str, decontaminate: bool):
        super().__init__(plan, found)
        self.compression, self.decontaminate = compression, decontaminate

    def do(self, rank: int, tasks: int) -> None:
        """Write a shard."""
        tally = Tally(self.plan.samples)
        write_shard(self.work / CORPUS / shard_name(rank, self.compression), self._lines(rank, tally))
        save_tally(self.work / "tally_write", rank, tally)

    def _lines(self, rank: int, tally: Tally) -> Iterator[dict[str, Any]]:
        cut = _Cut(self.work, self.plan.recipe.decontamination) if self.decontaminate else None
        for _, record in remaining(self.plan, rank, self.found, tally):
            size = record.pop("bytes")
            parts = cut.pieces(record, size, tally) if cut else [record["text"]]
            for number, part in enumerate(parts, 1):
                yield record | {"text": part} | ({"piece": number} if len(parts) > 1 else {})
            if parts:
                tally.keep(record["language"] or "not told", None, sum(len(part.encode()) for part in parts), size)
                tally.pieces += len(parts)


class _Cut:
    """Cuts text of evaluation data out of documents."""

    def __init__(self, work: Path, limits: Decontamination):
        self.index = Index.load(work / EVALUATION)
        self.counts = np.fromfile(work / "counts" / "total", np.uint32)
        self.limits = limits

    def pieces(self, record: dict[str, Any], size: int, tally: Tally) -> list[str]:
        """The remaining pieces of a document; [] if it is dropped. `tally` counts cuts and drops."""
        found = overlaps(record["text"], self.index, self.counts, self.limits.max_documents)
        parts = pieces(record["text"], found, self.limits)
        where = f"{len(found)} overlaps with {', '.join(sorted({overlap.name for overlap in found}))}"
        if not parts:
            why = f"more than {self.limits.max_pieces} pieces" if parts is None else "no piece is long enough"
            tally.drop("contamination", record["source"], size, f"{where}: {why}")
        elif found:
            tally.redact(record["source"], Counter({"overlap with evaluations": len(found)}))
        return parts or []


class Publish(TextTask):
    """Writes the report and moves the shards to where the corpus belongs; report.json comes last."""

    type = "WRITER"
    name = "publish"

    def __init__(self, plan: Plan, output: Path, compression: str, shards: int, job: dict[str, Any]):
        super().__init__(plan)
        self.output, self.compression, self.shards, self.job = output, compression, shards, job

    def do(self, rank: int, tasks: int) -> None:
        """Publish the corpus. It can be repeated after an interruption at any moment."""
        total, names = Tally(self.plan.samples), []
        for shard in range(self.shards):
            kept = load_tally(self.work / "tally_write", shard)
            if kept.documents:  # `megagpt data preprocess` would reject a file without records
                names.append(shard_name(shard, self.compression))
            total.merge(load_tally(self.work / "tally_filter", shard))
            total.merge(kept)
        move_shards(self.work, self.output, names)
        found = report.as_json(total, self.job, names, self.plan)
        write_atomic(self.output / "report.md", report.as_markdown(found).encode())
        write_atomic(self.output / "timing.json", json.dumps(read_seconds(self.work), indent=1).encode())
        write_atomic(self.output / "report.json", json.dumps(found, indent=1).encode())
