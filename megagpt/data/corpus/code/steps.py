"""Steps of the datatrove pipelines for source code. Importing this module needs datatrove.

Phases pass results on through the work folder: documents as shards, hashes of texts as arrays, tallies as JSON.
Deduplication identifies a document by its shard and its number in that shard.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from megagpt.data.corpus.code.contamination import Evaluation
from megagpt.data.corpus.code.file_filter import Criteria, filter_units
from megagpt.data.corpus.code.report import as_json, as_markdown
from megagpt.data.corpus.code.sources import Unit
from megagpt.data.corpus.duplicates.exact import found_in, hash_texts, offer
from megagpt.data.corpus.duplicates.minhash import MinHash
from megagpt.data.corpus.duplicates.near import sign
from megagpt.data.corpus.duplicates.steps import NEAR, SIGNED, name_of, write_names
from megagpt.data.corpus.grams import ngram_hashes, words
from megagpt.data.corpus.publish import CORPUS, load_tally, move_shards, save_tally
from megagpt.data.corpus.shards import read_shard, shard_name, write_shard
from megagpt.data.corpus.tally import Tally
from megagpt.data.files import write_atomic

TEXTS, EXACT = "texts", "exact"
"""Folders of the texts' hashes, and of the exact duplicates found with them."""


class FilterSources(PipelineStep):
    """Reads the sources of a shard and passes on the documents that the file rules keep."""

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
        self.work = work

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pass nothing on."""
        hashes = [np.zeros((0, 2), np.uint64)]
        paths: list[str] = []

        def lines() -> Iterator[dict[str, Any]]:
            for document in data:
                hashes.append(hash_texts([document.text]))
                paths.append(document.metadata["path"])
                yield {"text": document.text} | document.metadata

        write_shard(self.work / "filtered" / shard_name(rank), lines())
        write_names(self.work, rank, paths)
        offer(self.work / TEXTS, rank, np.concatenate(hashes))
        yield from ()


class ReadFiltered(PipelineStep):
    """Reads a shard of WriteFiltered without the exact duplicates and, once they are known, the near-duplicates."""

    type = "READER"
    name = "filtered documents"

    def __init__(self, work: Path, samples: int, near: bool):
        super().__init__()
        self.work, self.samples, self.near = work, samples, near

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Documents in the order of the shard."""
        exact = found_in(self.work / EXACT, rank)
        near = found_in(self.work / NEAR, rank) if self.near else {}
        tally = Tally(self.samples)
        for number, values in enumerate(read_shard(self.work / "filtered" / shard_name(rank))):
            if number in exact:
                reason = f"the same text as {name_of(self.work, exact[number])}"
                tally.drop("exact duplicate", values["path"], values["bytes"], reason)
            elif number in near:
                reason = f"like {name_of(self.work, near[number])}"
                tally.drop("near-duplicate", values["path"], values["bytes"], reason)
            else:
                yield Document(values.pop("text"), str(number), metadata=values)
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

        write_shard(self.work / CORPUS / shard_name(rank, self.compression), lines())
        save_tally(self.work / "tally_kept", rank, tally)
        yield from ()


class SignCode(PipelineStep):
    """Writes signatures over runs of a program's words."""

    type = "DEDUP"
    name = "signatures"

    def __init__(self, work: Path, setting: MinHash):
        super().__init__()
        self.work, self.setting = work, setting

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pass nothing on; the documents' identifiers are their numbers."""
        documents = ((int(document.id), self._runs(document.text)) for document in data)
        sign(self.work / SIGNED, rank, documents, self.setting)
        yield from ()

    def _runs(self, text: str) -> np.ndarray:
        return np.unique(ngram_hashes(words(text), self.setting.words))


class Publish(PipelineStep):
    """Writes the report and moves the shards to where the corpus belongs; report.json comes last."""

    type = "WRITER"
    name = "report"

    def __init__(self, work: Path, output: Path, compression: str, samples: int, shards: int, job: dict[str, Any]):
        super().__init__()
        self.work, self.output, self.compression = work, output, compression
        self.samples, self.shards, self.job = samples, shards, job

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Publish the corpus. It can be run again after an interruption at any moment."""
        total, names = Tally(self.samples), []
        for shard in range(self.shards):
            kept = load_tally(self.work / "tally_kept", shard)
            if kept.documents:  # `megagpt data preprocess` would reject a file without records
                names.append(shard_name(shard, self.compression))
            for tally in (load_tally(self.work / "tally_filter", shard), kept):
                total.merge(tally)
            total.merge(load_tally(self.work / "tally_duplicates", shard))
        move_shards(self.work, self.output, names)
        report = as_json(total, self.job, names)
        write_atomic(self.output / "report.md", as_markdown(report).encode())
        write_atomic(self.output / "report.json", json.dumps(report, indent=1).encode())
        yield from ()
