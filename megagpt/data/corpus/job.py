"""What making any corpus takes: knowing what is made already, a folder of work, and going on after an interruption.

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
    """As in report.json; None when the work was only submitted to Slurm."""
    mb_per_second_core: float | None = None
    """Millions of bytes of the input made into a corpus a second and worker; None unless all was done here and now."""
    mb_per_cpu_second: float | None = None
    """The same by the time that processors worked on it, which other programs on the machine change less."""


@dataclass(frozen=True)
class Job:
    """A corpus to make."""

    output: Path
    """Absolute."""
    about: dict[str, Any]
    """All that the result depends on, for JSON: inputs, options, and a digest of what the inputs hold."""
    shards: list[list[Any]]
    """What each task reads, for JSON; it finds it as `sources/NUMBER.json` in the folder of work."""
    sizes: list[int]
    """Bytes of each shard that have to be worked on."""
    set_up: Callable[[Path], None]
    """Puts whatever else tasks need into the folder of work, once."""
    phases: Callable[[Path], "list[Phase]"]
    """The work, in order, given its folder."""
    bytes_read: Callable[[dict[str, Any]], int]
    """Bytes that were worked on, from the report; rates are of them."""

    @property
    def work(self) -> Path:
        """The folder of all that is on the way."""
        return work_folder(self.output)


def work_folder(output: Path) -> Path:
    """Where the corpus `output` is made."""
    return output.with_name(f"{output.name}.work")


@contextmanager
def needed(purpose: str) -> Iterator[None]:
    """Say what is missing where an import of an optional package fails. Raises ConfigError."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f'{purpose} needs {error.name.split(".")[0]}: pip install "megagpt[corpora]"') from None


def check_at_least(*values: tuple[str, float, float]) -> None:
    """Raise ConfigError unless each (option, value, least) has at least the least value."""
    for name, value, least in values:
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")


def digest(units: Iterable[Any], files: Iterable[str | Path], what: str) -> str:
    """Changes with every unit of the input, and with the content of every file, which are `what`. Raises DataError."""
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
    """Consecutive units in shards of `shard_bytes`, or of more where that would make over `most`, and their sizes."""
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
    """Make the corpus `output`/*.jsonl.*, report.json and report.md, here or on a cluster.

    A corpus that was made by the same job is left as it is; report.json is written last. Raises ConfigError where
    a package is missing, DataError when an input cannot be used, the work cannot go on, or nothing is kept.
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
            anew = False  # rates a core of machines that are not known say nothing
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
    """Of this process and of those that it has started and that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of the corpus in `folder`, None where there is no report. Raises DataError when it is no report."""
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
    """The report of a corpus that the job has made and that is all there."""
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
    """Put what tasks need into the folder of work, unless it is there."""
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
