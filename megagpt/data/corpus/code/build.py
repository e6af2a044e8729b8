"""Make a corpus of source code with a chain of datatrove pipelines, on this machine or on a cluster."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megagpt.data.corpus.cluster import Ray, Slurm
from megagpt.data.corpus.code.languages import check_languages
from megagpt.data.corpus.code.licences import doubtful
from megagpt.data.corpus.code.options import Options
from megagpt.data.corpus.code.report import read_bytes
from megagpt.data.corpus.code.sources import list_units
from megagpt.data.corpus.job import Job, Result, check_at_least, cut, digest, make, needed, work_folder
from megagpt.errors import ConfigError

log = logging.getLogger(__name__)

MOST_SHARDS = 500
"""Largest number of shards. Each task of a step that compares all documents opens a file of every shard."""


def build(
    inputs: Sequence[str | Path],
    output: str | Path,
    options: Options,
    workers: int = 1,
    cluster: Slurm | Ray | None = None,
) -> Result:
    """Make the corpus `output`/*.jsonl.*, report.json and report.md from folders, git checkouts and archives.

    Raises ConfigError for options out of range, and the errors of `job.make`.
    """
    with needed("making a code corpus"):
        from megagpt.data.corpus.code.phases import phases
    options = _checked(options, workers)
    output = Path(output).absolute()
    own = tuple(f"{folder}/" for folder in (output, work_folder(output)))  # these may be inside an input
    units = [unit for unit in list_units(inputs) if not unit.path.startswith(own)]
    sizes = [unit.work(options.languages, options.limits.max_bytes) for unit in units]
    shards, sizes = cut(units, sizes, options.shard_mb * 1e6, MOST_SHARDS)
    sources = digest(units, options.decontaminate, "evaluation data")
    about: dict[str, Any] = {"inputs": list(map(str, inputs)), "sources": sources} | asdict(options)
    job = Job(
        output,
        about,
        shards,
        sizes,
        set_up=lambda work: _save_evaluation(work, options),
        phases=lambda work: phases(work, output, options, len(shards), about),
        bytes_read=read_bytes,
    )
    return make(job, workers, cluster)


def _checked(options: Options, workers: int) -> Options:
    limits = options.limits
    check_at_least(
        ("--workers", workers, 1),
        ("--max-bytes", limits.max_bytes, 1),
        ("--max-mean-line", limits.max_mean_line, 1),
        ("--max-line", limits.max_line, 1),
        ("--min-alphanumeric", limits.min_alphanumeric, 0),
        ("--generated-lines", limits.generated_lines, 0),
        ("--samples", options.samples, 1),
        ("--minhash-words", options.minhash_words, 1),
        ("--minhash-buckets", options.minhash_buckets, 1),
        ("--minhash-hashes", options.minhash_hashes, 1),
        ("--ngram", options.ngram, 1),
        ("--shard-mb", options.shard_mb, 0.001),
    )
    if max(options.ngram, options.minhash_words) > 64:
        raise ConfigError("--ngram and --minhash-words can be 64 at most")
    if limits.min_alphanumeric > 1:
        raise ConfigError(f"--min-alphanumeric is a share, at most 1, not {limits.min_alphanumeric}")
    for name, likely in doubtful(options.licences or ()).items():
        log.warning("--licences: %s is not a known licence: did you mean %s?", name, likely)
    return Options(**vars(options) | {"languages": check_languages(options.languages)})


def _save_evaluation(work: Path, options: Options) -> None:
    """Write the n-grams of the evaluation data to the work folder, for the tasks."""
    from megagpt.data.corpus.code.contamination import read_evaluation

    evaluation, short = read_evaluation(options.decontaminate, options.ngram)
    if short:
        log.warning(
            "%d records of evaluation data have fewer than %d words and are not searched for", short, options.ngram
        )
    evaluation.save(work / "evaluation.npz")
