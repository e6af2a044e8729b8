"""Run a chain of datatrove pipelines on this machine, on Slurm or on Ray. Importing this module needs datatrove."""

import io
import logging
import math
import multiprocessing
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from megagpt import env
from megagpt.data.corpus.cluster import Ray, Slurm
from megagpt.data.workers import start_worker
from megagpt.errors import ConfigError, DataError
from megagpt.log import progress

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_SLURM_ARRAY = 1000
"""Largest size of a job array. Slurm's limit is 1001, and datatrove lets the next phase wait for the last array only,
so a phase must fit into one array."""
_RAY_ATTEMPTS = 3
"""Number of restarts of a task that was killed or whose node died."""


class Phase(NamedTuple):
    """One pipeline and its tasks, which can run in parallel after all earlier phases."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int
    by_shard: bool = False
    """Whether each task works on one shard."""


def run_here(chain: list[Phase], work: Path, shards: list[int], workers: int) -> bool:
    """Run all tasks that are not completed yet. Returns whether no task was completed before.

    Raises DataError when a worker is killed.
    """
    anew = not any(_completed(work / "logs" / phase.name) for phase in chain)
    with _pool(workers) as pool:
        for phase in chain:
            _run_phase(phase, work, shards, partial(_run, pool))
    return anew


Runner = Callable[[LocalPipelineExecutor, list[int]], None]


def _run_phase(phase: Phase, work: Path, shards: list[int], run: Runner) -> None:
    """Run the tasks that are not completed, and show progress. Raises DataError when, for example, the disk is full."""
    folder = work / "logs" / phase.name
    try:
        executor = LocalPipelineExecutor(phase.pipeline, phase.tasks, logging_dir=str(folder))
        with _watched(folder, phase.name, shards if phase.by_shard else []):
            run(executor, executor.get_incomplete_ranks())
    except OSError as error:
        raise DataError(f"cannot go on in {folder}: {error}") from error


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for all phases. Unlike datatrove's executor, this pool notices when a process is killed."""
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps because memory ran out: run the command again with fewer "
                "--workers, and it goes on from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _run(pool: ProcessPoolExecutor | None, executor: LocalPipelineExecutor, ranks: list[int]) -> None:
    """Run tasks in the pool, or in this process."""
    if pool is None or len(ranks) == 1:
        for rank in ranks:
            _run_task(executor, rank)
    else:
        for future in [pool.submit(_run_task, executor, rank) for rank in ranks]:
            future.result()


def _run_task(executor: LocalPipelineExecutor, rank: int) -> None:
    logger.disable("datatrove")  # its log would fill the terminal, and errors are raised anyway
    deepcopy(executor)._run_for_rank(rank)


def _completed(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "completions").glob("*")]


@contextmanager
def _watched(folder: Path, name: str, sizes: list[int]) -> Iterator[None]:
    """Show the progress of a phase."""
    if not sizes:
        with redirect_stderr(io.StringIO()):  # hide datatrove's own progress bars, whose counts mean little
            yield
        return
    done = sum(sizes[rank] for rank in _completed(folder))
    ended = threading.Event()
    with progress(sum(sizes), "B", name, initial=done) as bar:

        def watch() -> None:
            over = False
            while not over:
                over = ended.wait(_POLL_SECONDS)
                bar.update(sum(sizes[rank] for rank in _completed(folder)) - bar.n)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def run_on_ray(chain: list[Phase], work: Path, shards: list[int], workers: int, cluster: Ray) -> None:
    """Run all tasks that are not completed yet on Ray.

    Raises DataError when a task is killed again and again, ConfigError without ray or when the cluster cannot be
    reached.

    datatrove's RayPipelineExecutor is not used. It runs each task in a pool of one process, and waits forever if that
    process is killed; and it only logs errors of tasks, so the next phase would read missing files.
    """
    env.keep_ray_to_itself()
    try:
        import ray
    except ImportError:
        raise ConfigError('running on Ray needs ray: pip install "megagpt[ray]"') from None
    here = {"num_cpus": workers, "include_dashboard": False} if cluster.address == "local" else {}
    try:
        _knock(cluster.address)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except Exception as error:  # Ray raises many classes here, even Exception itself
        raise ConfigError(f"--ray {cluster.address}: {error}") from error
    try:
        for phase in chain:
            _run_phase(phase, work, shards, partial(_run_ray_tasks, cluster))
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if no server listens at HOST:PORT. Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _run_ray_tasks(cluster: Ray, executor: LocalPipelineExecutor, ranks: list[int]) -> None:
    """Run tasks. Ray restarts a task if its process or node dies."""
    import ray

    memory = {"memory": int(cluster.memory_gb * 1e9)} if cluster.memory_gb else {}
    remote = ray.remote(_run_task).options(num_cpus=1, max_retries=_RAY_ATTEMPTS, **memory)
    shared = ray.put(executor)
    waiting = [remote.remote(shared, rank) for rank in ranks]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise DataError(
            f"a task was killed {_RAY_ATTEMPTS + 1} times on Ray, perhaps because memory ran out "
            f"({type(error).__name__}): run the command again with more --ray-memory-gb, and it goes on from here"
        ) from None
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def submit(chain: list[Phase], work: Path, slurm: Slurm) -> None:
    """Submit all phases to Slurm, each to start after the one before, without completed tasks."""
    activate = Path(sys.prefix) / "bin" / "activate"
    last = None
    for phase in chain:
        folder = work / "logs" / phase.name
        last = SlurmPipelineExecutor(
            phase.pipeline,
            phase.tasks,
            slurm.time,
            slurm.partition,
            mem_per_cpu_gb=slurm.memory_gb,
            workers=min(slurm.tasks, phase.tasks),
            tasks_per_job=math.ceil(phase.tasks / _SLURM_ARRAY),
            job_name=f"corpus_{phase.name}",
            qos=None,
            venv_path=shlex.quote(str(activate)) if activate.exists() else None,
            sbatch_args=slurm.sbatch,
            depends=last,
            logging_dir=str(folder),
        )
    last.run()
    log.info("submitted to Slurm; its logs will be in %s", work / "logs")
