"""The work as steps of datatrove pipelines. Importing this needs datatrove.

Phases pass their results on through the work folder: documents as shards, texts' hashes as arrays, tallies as JSON.
Documents keep their number in the shard that they were written to, and that number is what deduplication names.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from megagpt.data.corpus.contamination import Evaluation, ngram_hashes, words
from megagpt.data.corpus.file_filter import Criteria, filter_units
from megagpt.data.corpus.report import as_json, as_markdown
from megagpt.data.corpus.shards import read_shard, shard_name, write_shard
from megagpt.data.corpus.sources import Unit
from megagpt.data.corpus.tally import Tally
from megagpt.data.files import sync_folder, write_atomic

EXACT = "exact duplicate"
NEAR = "near-duplicate"

_PRIME = np.uint64((1 << 61) - 1)
_AT_A_TIME = 256


def save_tally(folder: Path, rank: int, tally: Tally) -> None:
    """Put a shard's tally where load_tally finds it."""
    write_atomic(folder / f"{rank:05d}.json", json.dumps(tally.to_json()).encode())


def load_tally(folder: Path, rank: int) -> Tally:
    """The tally that was saved, or an empty one."""
    path = folder / f"{rank:05d}.json"
    return Tally.from_json(json.loads(path.read_bytes())) if path.exists() else Tally()


class FilterSources(PipelineStep):
    """Reads the sources of a shard and passes on the documents that the rules about one file keep."""

    type = "READER"
    name = "source files"

    def __init__(self, work: Path, criteria: Criteria, samples: int):
        super().__init__()
        self.work, self.criteria, self.samples = work, criteria, samples

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Documents in the order of the sources."""
        units = [Unit(*values) for values in json.loads((self.work / "sources" / f"{rank:05d}.json").read_bytes())]
        evaluation = Evaluation.load(self.work / "evaluation.npz")
        tally = Tally(self.samples)
        for document in filter_units(units, self.criteria, evaluation, tally):
            metadata = document._asdict()
            self.stat_update("documents")
            yield Document(metadata.pop("text"), document.path, metadata=metadata)
        save_tally(self.work / "tally_filter", rank, tally)


class WriteFiltered(PipelineStep):
    """Writes documents to a shard, and their paths and hashes of their texts beside it."""

    type = "WRITER"
    name = "filtered documents"

    def __init__(self, work: Path):
        super().__init__()
        self.folder = work / "filtered"

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pass nothing on."""
        hashes: list[bytes] = []
        paths: list[str] = []

        def lines() -> Iterator[dict[str, Any]]:
            for document in data:
                hashes.append(blake2b(document.text.encode(), digest_size=16).digest())
                paths.append(document.metadata["path"])
                yield {"text": document.text} | document.metadata

        write_shard(self.folder / shard_name(rank), lines())
        write_atomic(self.folder / f"{rank:05d}.paths", json.dumps(paths).encode())
        write_atomic(self.folder / f"{rank:05d}.hashes", b"".join(hashes))
        yield from ()


@lru_cache(maxsize=64)
def _paths(work: Path, rank: int) -> list[str]:
    """Paths of the documents in a shard of WriteFiltered."""
    return json.loads((work / "filtered" / f"{rank:05d}.paths").read_bytes())


def _exact(work: Path, rank: int) -> dict[int, tuple[int, int]]:
    """Numbers of a shard's exact duplicates, with shard and number of the document that each of them repeats."""
    rows = np.load(work / "exact" / f"{rank:05d}.npy").tolist()
    return {number: (shard, first) for number, shard, first in rows}


class ReadFiltered(PipelineStep):
    """Reads a shard of WriteFiltered without the exact duplicates and, once they are known, the near-duplicates."""

    type = "READER"
    name = "filtered documents"

    def __init__(self, work: Path, samples: int, near: bool):
        super().__init__()
        self.work, self.samples, self.near = work, samples, near

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Documents in the order of the shard."""
        exact, near, tally, place = _exact(self.work, rank), {}, Tally(self.samples), 0
        if self.near:
            near = json.loads((self.work / "near" / f"{rank:05d}.json").read_bytes())
        for number, values in enumerate(read_shard(self.work / "filtered" / shard_name(rank))):
            if number in exact:
                shard, first = exact[number]
                reason = f"the same text as {_paths(self.work, shard)[first]}"
                tally.drop(EXACT, values["path"], values["bytes"], reason)
                continue
            if like := near.get(str(place)):
                tally.drop(NEAR, values["path"], values["bytes"], f"like {like}")
            else:
                yield Document(values.pop("text"), values["path"], metadata=values)
            place += 1
        if self.near:
            save_tally(self.work / "tally_duplicates", rank, tally)


class WriteDocuments(PipelineStep):
    """Writes shards of the corpus."""

    type = "WRITER"
    name = "corpus"

    def __init__(self, work: Path, compression: str, samples: int):
        super().__init__()
        self.work, self.compression, self.samples = work, compression, samples

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pass nothing on."""
        tally = Tally(self.samples)

        def lines() -> Iterator[dict[str, Any]]:
            for document in data:
                size = document.metadata.pop("bytes")
                about = document.metadata
                tally.keep(about["language"], about["licence"], len(document.text.encode()), size)
                yield {"text": document.text} | about

        write_shard(self.work / "corpus" / shard_name(rank, self.compression), lines())
        save_tally(self.work / "tally_kept", rank, tally)
        yield from ()


class FindExactDuplicates(PipelineStep):
    """Finds documents whose text an earlier one has, by their hashes, all of which are held at once."""

    type = "DEDUP"
    name = "exact duplicates"

    def __init__(self, work: Path, shards: int):
        super().__init__()
        self.work, self.shards = work, shards

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write for each shard: rows of (number, the first one's shard, its number)."""
        (self.work / "exact").mkdir(exist_ok=True)
        files = [self.work / "filtered" / f"{shard:05d}.hashes" for shard in range(self.shards)]
        hashes = [np.fromfile(file, "<u8").reshape(-1, 2) for file in files]
        sizes = [len(part) for part in hashes]
        places = np.stack(
            [np.repeat(np.arange(self.shards), sizes), np.concatenate([np.arange(size) for size in sizes])], axis=1
        )
        doubles, firsts = _repeated(np.concatenate(hashes))
        rows = np.concatenate([places[doubles], places[firsts]], axis=1)
        for shard in range(self.shards):
            np.save(self.work / "exact" / f"{shard:05d}.npy", rows[rows[:, 0] == shard][:, 1:])
        self.stat_update("duplicates", value=len(rows))
        yield from ()


def _repeated(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of rows that an earlier row equals, ascending, and of the first such row."""
    order = np.lexsort(hashes.T)  # stable: among equal rows the first stays first
    ordered = hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[new][np.cumsum(new) - 1]
    doubles, firsts = order[~new], first[~new]
    ascending = np.argsort(doubles)
    return doubles[ascending], firsts[ascending]


class _Words(WordTokenizer):
    """A program's words, in place of the tokenizer of a natural language that datatrove asks for."""

    def word_tokenize(self, text: str) -> list[str]:
        return [word.decode() for word in words(text)]

    def sent_tokenize(self, text: str) -> list[str]:
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return []


class CodeSignature(MinhashDedupSignature):
    """datatrove's signatures, over runs of a program's words."""

    def __init__(self, work: Path, config: MinhashConfig):
        super().__init__(str(work / "signatures"), config, language=_Words())

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the runs of words, each once: column of uint64."""
        return np.unique(ngram_hashes(words(text), self.config.n_grams)).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The same as datatrove's, without division and in pieces that stay in a core's cache."""
        factors, summands = self.parameters
        smallest = np.full(self.num_hashes, _PRIME)
        for start in range(0, len(shingles), _AT_A_TIME):
            values = shingles[start : start + _AT_A_TIME] * factors + summands
            values = (values & _PRIME) + (values >> np.uint64(61))  # at most _PRIME + 7, and the same modulo _PRIME
            values = np.minimum(values, values - _PRIME)  # which wraps around to something large below _PRIME
            np.minimum(smallest, values.min(axis=0), out=smallest)
        return [bucket.tolist() for bucket in np.split(smallest, self.config.num_buckets)]


class NameNearDuplicates(PipelineStep):
    """Finds, for each document that datatrove's clusters leave out, the path of the one that is kept in its place."""

    type = "DEDUP"
    name = "near-duplicates"

    def __init__(self, work: Path, shards: int):
        super().__init__()
        self.work, self.shards = work, shards

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Write for each shard: {number among those that are no exact duplicates: path}."""
        clusters = [self._read(f"{shard:06d}.clusters").reshape(-1, 2).tolist() for shard in range(self.shards)]
        removed = [set(self._read(f"{shard:06d}.remove").tolist()) for shard in range(self.shards)]
        kept: dict[int, str] = {}
        for shard in range(self.shards):
            alone = [(number, cluster) for number, cluster in clusters[shard] if number not in removed[shard]]
            if alone:
                exact = _exact(self.work, shard)
                paths = [path for number, path in enumerate(_paths(self.work, shard)) if number not in exact]
                kept |= {cluster: paths[number] for number, cluster in alone}
        for shard in range(self.shards):
            named = {number: kept[cluster] for number, cluster in clusters[shard] if number in removed[shard]}
            write_atomic(self.work / "near" / f"{shard:05d}.json", json.dumps(named).encode())
        self.stat_update("duplicates", value=sum(map(len, removed)))
        yield from ()

    def _read(self, name: str) -> np.ndarray:
        path = self.work / "clusters" / name
        return np.fromfile(path, "<u4") if path.exists() else np.zeros(0, "<u4")


class Publish(PipelineStep):
    """Writes the report and moves the shards to where the corpus belongs; report.json comes last."""

    type = "WRITER"
    name = "report"

    def __init__(self, work: Path, output: Path, compression: str, samples: int, shards: int, job: dict[str, Any]):
        super().__init__()
        self.work, self.output, self.compression = work, output, compression
        self.samples, self.shards, self.job = samples, shards, job

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Can be run again after an interruption at any moment."""
        total, names = Tally(self.samples), []
        for shard in range(self.shards):
            kept = load_tally(self.work / "tally_kept", shard)
            if kept.documents:  # a file without records is no document, and `megagpt data preprocess` says so
                names.append(shard_name(shard, self.compression))
            for tally in (load_tally(self.work / "tally_filter", shard), kept):
                total.merge(tally)
            total.merge(load_tally(self.work / "tally_duplicates", shard))
        self._remove_older(names)
        for name in names:
            made = self.work / "corpus" / name
            if made.exists():
                made.replace(self.output / name)
        sync_folder(self.output)
        report = as_json(total, self.job, names)
        write_atomic(self.output / "report.md", as_markdown(report).encode())
        write_atomic(self.output / "report.json", json.dumps(report, indent=1).encode())
        yield from ()

    def _remove_older(self, names: list[str]) -> None:
        """Remove the shards of a corpus that was made with other options, by what its report lists."""
        self.output.mkdir(parents=True, exist_ok=True)
        older, here = self.work / "older.json", self.output / "report.json"
        if here.exists():
            here.replace(older)
        if older.exists():
            for name in json.loads(older.read_bytes())["shards"]:
                if name not in names:
                    (self.output / Path(name).name).unlink(missing_ok=True)
