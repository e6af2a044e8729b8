"""Makes a corpus of source code: a chain of datatrove pipelines, on this machine or on Slurm.

Everything on the way lies in OUTPUT.work, one file a shard, whole or not at all; datatrove remembers there which tasks
are completed. Given the same job again, work goes on after them. How the input is cut into shards depends on the input
alone, so that the result depends neither on interruptions nor on the number of workers.
"""

import hashlib
import json
import logging
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.languages import check_languages
from megagpt.data.corpus.licences import doubtful
from megagpt.data.corpus.options import Options, Slurm
from megagpt.data.corpus.report import read_bytes
from megagpt.data.corpus.sources import Unit, list_units
from megagpt.data.files import locked, write_atomic
from megagpt.errors import ConfigError, DataError

log = logging.getLogger(__name__)

MOST_SHARDS = 500
"""MinHash opens a file of every shard at a time, and systems allow a process about a thousand."""


@dataclass(frozen=True)
class Result:
    """The outcome of `build`."""

    report: dict[str, Any] | None
    """As in report.json; None when the work was only submitted to Slurm."""
    mb_per_second_core: float | None = None
    """Millions of bytes of source code filtered and deduplicated a second and worker; None unless all was done now."""
    mb_per_cpu_second: float | None = None
    """The same by the time that processors worked on it, which other programs on the machine change less."""


def build(
    inputs: Sequence[str | Path],
    output: str | Path,
    options: Options,
    workers: int = 1,
    slurm: Slurm | None = None,
) -> Result:
    """Make the corpus `output`/*.jsonl.*, report.json and report.md out of folders, git checkouts and archives.

    A corpus that was made from the same inputs with the same options is left as it is; report.json is written last.
    Raises ConfigError for options that make no sense, DataError when an input cannot be used or nothing is kept.
    """
    try:
        from megagpt.data.corpus import executors
    except ImportError as error:
        raise ConfigError(
            f'making a code corpus needs {error.name.split(".")[0]}: pip install "megagpt[corpora]"'
        ) from None
    options = _checked(options, workers)
    output = Path(output).absolute()
    work = output.with_name(f"{output.name}.work")
    own = tuple(f"{folder}/" for folder in (output, work))  # which may lie inside of an input
    units = [unit for unit in list_units(inputs) if not unit.path.startswith(own)]
    job = {"inputs": list(map(str, inputs)), "sources": _digest(units, options)} | asdict(options)
    made = _made(output, job)
    if made:
        log.info("%s is already made from these inputs", output)
        return Result(made)
    with locked(work):
        shards = _prepare(work, job, units, options)
        phases = executors.phases(work, output, options, shards, job)
        if slurm:
            executors.submit(phases, work, slurm)
            return Result(None)
        began = np.array([time.monotonic(), _cpu_seconds()])
        anew = executors.run_here(phases, work, shards, workers)
        seconds = np.array([time.monotonic(), _cpu_seconds()]) - began
    shutil.rmtree(work)
    report = json.loads((output / "report.json").read_bytes())
    if not report["corpus"]["documents"]:
        raise DataError(f"no document is left: {output / 'report.md'} says which rules dropped them")
    rates = read_bytes(report) / 1e6 / seconds / (workers, 1)
    return Result(report, *rates.tolist()) if anew else Result(report)


def _cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def _checked(options: Options, workers: int) -> Options:
    limits = options.limits
    for name, value, least in (
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
    ):
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    if max(options.ngram, options.minhash_words) > 64:
        raise ConfigError("--ngram and --minhash-words can be 64 at most")
    if limits.min_alphanumeric > 1:
        raise ConfigError(f"--min-alphanumeric is a share, at most 1, not {limits.min_alphanumeric}")
    for name, likely in doubtful(options.licences or ()).items():
        log.warning("--licences: %s is no licence that is known here: was %s meant?", name, likely)
    return Options(**vars(options) | {"languages": check_languages(options.languages)})


def _digest(units: list[Unit], options: Options) -> str:
    """Changes with every file that is added, removed or changed, in the inputs or the evaluation data."""
    digest = hashlib.sha256()
    for unit in units:
        digest.update(json.dumps(unit).encode())
    for path in map(Path, options.decontaminate):
        if not path.is_file():
            raise DataError(f"{path}: there is no such file of evaluation data")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _made(output: Path, job: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a corpus that the job has made and that is all there."""
    try:
        report = json.loads((output / "report.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise DataError(f"{output / 'report.json'} is not the report of a corpus: choose another --output") from None
    if not isinstance(report, dict) or not {"job", "shards"} <= report.keys():
        raise DataError(f"{output / 'report.json'} is not the report of a corpus: choose another --output")
    changed = [name for name, value in _plain(job).items() if report["job"].get(name) != value]
    missing = [name for name in report["shards"] if not (output / name).exists()]
    if changed or missing:
        why = f"was made with other {' and '.join(changed)}" if changed else f"has no {missing[0]}"
        log.warning("%s %s: making it anew", output, why)
        return None
    return report


def _plain(job: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(job))


def _prepare(work: Path, job: dict[str, Any], units: list[Unit], options: Options) -> list[int]:
    """Put what workers need into `work`, unless it is there; return the bytes of source code in each shard."""
    path = work / "job.json"
    try:
        old = json.loads(path.read_bytes())
    except (OSError, ValueError):
        old = {}
    if old.get("job") == _plain(job):
        log.info("going on with what an interrupted run has done")
        return old["shards"]
    if old:
        log.warning("%s is of an interrupted run with other inputs or options: starting anew", work)
    for item in work.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != "lock":
            item.unlink()
    from megagpt.data.corpus.contamination import read_evaluation

    evaluation, short = read_evaluation(options.decontaminate, options.ngram)
    if short:
        log.warning(
            "%d records of evaluation data have less than %d words and are not looked for", short, options.ngram
        )
    evaluation.save(work / "evaluation.npz")
    shards = _cut(units, options)
    for number, (_, part) in enumerate(shards):
        write_atomic(work / "sources" / f"{number:05d}.json", json.dumps(part).encode())
    sizes = [size for size, _ in shards]
    write_atomic(path, json.dumps({"job": job, "shards": sizes}).encode())
    return sizes


def _cut(units: list[Unit], options: Options) -> list[tuple[int, list[Unit]]]:
    """Shards of consecutive units, with the bytes of each that have to be filtered."""
    work = [unit.work(options.languages, options.limits.max_bytes) for unit in units]
    enough = max(options.shard_mb * 1e6, sum(work) / (MOST_SHARDS - 1))
    shards, size, part = [], 0, []
    for unit, more in zip(units, work, strict=True):
        part.append(unit)
        size += more
        if size >= enough:
            shards.append((size, part))
            size, part = 0, []
    return [*shards, (size, part)] if part else shards
