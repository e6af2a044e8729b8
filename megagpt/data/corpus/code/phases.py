"""The chain of datatrove pipelines that makes a corpus of source code. Importing this module needs datatrove."""

from pathlib import Path
from typing import Any

from megagpt.data.corpus.code import steps
from megagpt.data.corpus.code.file_filter import Criteria
from megagpt.data.corpus.code.licences import expand
from megagpt.data.corpus.code.options import Options
from megagpt.data.corpus.duplicates.minhash import MinHash
from megagpt.data.corpus.duplicates.steps import FindRepeated, near_phases, ranges
from megagpt.data.corpus.executors import Phase


def phases(work: Path, output: Path, options: Options, shards: int, job: dict[str, Any]) -> list[Phase]:
    """All phases, in order."""
    allowed = None if options.licences is None else expand(options.licences)
    criteria = Criteria(options.languages, options.limits, allowed)
    setting = MinHash(options.minhash_words, options.minhash_buckets, options.minhash_hashes)
    samples = options.samples
    publish = steps.Publish(work, output, options.compression, samples, shards, job)
    return [
        Phase("filter", [steps.FilterSources(work, criteria, samples), steps.WriteFiltered(work)], shards, True),
        Phase("exact", [FindRepeated(work, steps.TEXTS, steps.EXACT)], ranges(shards)),
        Phase("sign", [steps.ReadFiltered(work, samples, near=False), steps.SignCode(work, setting)], shards, True),
        *near_phases(work, shards),
        Phase(
            "write",
            [steps.ReadFiltered(work, samples, near=True), steps.WriteDocuments(work, options.compression, samples)],
            shards,
            True,
        ),
        Phase("publish", [publish], 1),
    ]
