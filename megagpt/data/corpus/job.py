"""The work common to all corpora: find a finished corpus, keep a work folder, and resume after an interruption.

All intermediate files are in OUTPUT.work, one per shard, written atomically; datatrove records there which tasks are
completed. The same job, started again, continues after them. The division into shards depends only on the input, so the
result does not depend on interruptions or on the number of workers.
"""

import hashlib
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from megagpt.data.corpus.cluster import Ray, Slurm
from megagpt.data.files import locked, write_atomic
from megagpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megagpt.data.corpus.executors import Phase

log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Result:
    """The outcome of `make`."""

    report: dict[str, Any] | None
    """The content of report.json; None when the work was only submitted to Slurm."""
    mb_per_second_core: float | None = None
    """Megabytes of input per second and worker; None unless this call did all the work on this machine."""
    mb_per_cpu_second: float | None = None
    """Megabytes of input per second of CPU time, which other programs on the machine affect less."""


@dataclass(frozen=True)
class Job:
    """A corpus to make."""

    output: Path
    """Absolute path of the corpus."""
    about: dict[str, Any]
    """Everything that determines the result, for JSON: inputs, options, and a digest of the inputs' content."""
    shards: list[list[Any]]
    """The input of each task, for JSON; tasks read it from `sources/NUMBER.json` in the work folder."""
    sizes: list[int]
    """Bytes of each shard that have to be processed."""
    set_up: Callable[[Path], None]
    """Called once with the work folder; writes other files that tasks need."""
    phases: Callable[[Path], "list[Phase]"]
    """Called with the work folder; returns the phases in order."""
    bytes_read: Callable[[dict[str, Any]], int]
    """Called with the report; returns the number of processed bytes, for the rates."""

    @property
    def work(self) -> Path:
        """The folder of intermediate files."""
        return work_folder(self.output)


def work_folder(output: Path) -> Path:
    """The work folder of the corpus `output`."""
    return output.with_name(f"{output.name}.work")


@contextmanager
def needed(purpose: str) -> Iterator[None]:
    """Raise ConfigError with an instruction to install, if an import of an optional package fails in the block."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f'{purpose} needs {error.name.split(".")[0]}: pip install "megagpt[corpora]"') from None


def check_at_least(*values: tuple[str, float, float]) -> None:
    """Check (option, value, least) triples. Raises ConfigError for a value below `least`."""
    for name, value, least in values:
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")


def digest(units: Iterable[Any], files: Iterable[str | Path], what: str) -> str:
    """A hash of the units of the input and the content of the files.

    what: description of the files, for the message

    Raises DataError for a missing file.
    """
    sha = hashlib.sha256()
    for unit in units:
        sha.update(json.dumps(unit).encode())
    for path in map(Path, files):
        if not path.is_file():
            raise DataError(f"{path}: there is no such file of {what}")
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                sha.update(piece)
    return sha.hexdigest()


def cut(units: Sequence[Item], sizes: Sequence[int], shard_bytes: float, most: int) -> tuple[list[list[Item]], list]:
    """Consecutive units in shards of about `shard_bytes`, or larger to have at most `most` shards; the shards' sizes.

    sizes: bytes of each unit
    """
    enough = max(shard_bytes, sum(sizes) / (most - 1))
    shards, totals, size, part = [], [], 0, []
    for unit, more in zip(units, sizes, strict=True):
        part.append(unit)
        size += more
        if size >= enough:
            shards.append(part)
            totals.append(size)
            size, part = 0, []
    return ([*shards, part], [*totals, size]) if part else (shards, totals)


def make(job: Job, workers: int = 1, cluster: Slurm | Ray | None = None) -> Result:
    """Make the corpus `output`/*.jsonl.*, report.json and report.md, on this machine or on a cluster.

    A corpus of the same job is left unchanged; report.json is written last. Raises ConfigError when a package is
    missing; DataError when an input cannot be used, the work cannot continue, or no document is kept.
    """
    from megagpt.data.corpus import executors

    made = _made(job)
    if made:
        log.info("%s is already made from these inputs", job.output)
        return Result(made)
    with locked(job.work):
        _prepare(job)
        phases = job.phases(job.work)
        if isinstance(cluster, Slurm):
            executors.submit(phases, job.work, cluster)
            return Result(None)
        began = np.array([time.monotonic(), _cpu_seconds()])
        if cluster:
            executors.run_on_ray(phases, job.work, job.sizes, workers, cluster)
            anew = False  # a rate per core means nothing on unknown machines
        else:
            anew = executors.run_here(phases, job.work, job.sizes, workers)
        seconds = np.array([time.monotonic(), _cpu_seconds()]) - began
    shutil.rmtree(job.work)
    report = json.loads((job.output / "report.json").read_bytes())
    if not report["corpus"]["documents"]:
        raise DataError(f"no document is left: {job.output / 'report.md'} says which rules dropped them")
    rates = job.bytes_read(report) / 1e6 / seconds / (workers, 1)
    return Result(report, *rates.tolist()) if anew else Result(report)


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its child processes that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of the corpus in `folder`; None without report.json. Raises DataError if it is not a report."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        report = None
    if not isinstance(report, dict) or not {"job", "shards"} <= report.keys():
        raise DataError(f"{path} is not the report of a corpus: choose another --output")
    return report


def _made(job: Job) -> dict[str, Any] | None:
    """The report of the job's corpus, if it is complete and up to date; else None."""
    report = read_report(job.output)
    if report is None:
        return None
    changed = [name for name, value in _plain(job.about).items() if report["job"].get(name) != value]
    missing = [name for name in report["shards"] if not (job.output / name).exists()]
    if changed or missing:
        why = f"was made with other {' and '.join(changed)}" if changed else f"has no {missing[0]}"
        log.warning("%s %s: making it anew", job.output, why)
        return None
    return report


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(about))


def _prepare(job: Job) -> None:
    """Write the tasks' input to the work folder, unless an interrupted run of the same job has done so."""
    path = job.work / "job.json"
    try:
        old = json.loads(path.read_bytes())
    except (OSError, ValueError):
        old = {}
    if old.get("job") == _plain(job.about):
        log.info("going on with what an interrupted run has done")
        return
    if old:
        log.warning("%s is of an interrupted run with other inputs or options: starting anew", job.work)
    for item in job.work.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != "lock":
            item.unlink()
    job.set_up(job.work)
    for number, part in enumerate(job.shards):
        write_atomic(job.work / "sources" / f"{number:05d}.json", json.dumps(part).encode())
    write_atomic(path, json.dumps({"job": job.about}).encode())
