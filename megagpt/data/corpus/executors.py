"""The chain of pipelines, and datatrove's executors that run it here or on Slurm. Importing this needs datatrove."""

import io
import logging
import multiprocessing
import shlex
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.logging import logger

from megagpt.data.corpus import steps
from megagpt.data.corpus.file_filter import Criteria
from megagpt.data.corpus.licences import expand
from megagpt.data.corpus.options import Options, Slurm
from megagpt.data.workers import start_worker
from megagpt.errors import DataError
from megagpt.log import progress

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class Phase(NamedTuple):
    """Pipelines that can run at once, after those of the phases before."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int
    by_shard: bool = False
    """Whether each task is a shard's."""


def phases(work: Path, output: Path, options: Options, shards: list[int], job: dict[str, Any]) -> list[Phase]:
    """All the work, in order."""
    allowed = None if options.licences is None else expand(options.licences)
    criteria = Criteria(options.languages, options.limits, allowed)
    config = MinhashConfig(options.minhash_words, options.minhash_buckets, options.minhash_hashes)
    pairs, clusters = str(work / "pairs"), str(work / "clusters")
    count, samples = len(shards), options.samples
    return [
        Phase("filter", [steps.FilterSources(work, criteria, samples), steps.WriteFiltered(work)], count, True),
        Phase("exact", [steps.FindExactDuplicates(work, count)], 1),
        Phase("sign", [steps.ReadFiltered(work, samples, near=False), steps.CodeSignature(work, config)], count, True),
        Phase("match", [MinhashDedupBuckets(str(work / "signatures"), pairs, config=config)], config.num_buckets),
        Phase(
            "cluster",
            [
                MinhashDedupCluster(pairs, clusters, config=config, save_cluster_id=True),
                steps.NameNearDuplicates(work, count),
            ],
            1,
        ),
        Phase(
            "write",
            [
                steps.ReadFiltered(work, samples, near=True),
                steps.WriteDocuments(work, options.compression, samples),
            ],
            count,
            True,
        ),
        Phase("publish", [steps.Publish(work, output, options.compression, samples, count, job)], 1),
    ]


def run_here(chain: list[Phase], work: Path, shards: list[int], workers: int) -> bool:
    """Run what is not completed yet; return whether that was all of it. Raises DataError when a worker is killed."""
    anew = True
    with _pool(workers) as pool:
        for phase in chain:
            folder = work / "logs" / phase.name
            executor = LocalPipelineExecutor(phase.pipeline, phase.tasks, workers, str(folder))
            anew &= not _completed(folder)
            with _watched(folder, phase.name, shards if phase.by_shard else []):
                _run(executor, pool)
    return anew


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for all phases; unlike those of datatrove's executor they are missed when they are killed."""
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps for want of memory: run the command again, with fewer "
                "--workers, and it goes on from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _run(executor: LocalPipelineExecutor, pool: ProcessPoolExecutor | None) -> None:
    """Run all tasks that are not completed."""
    ranks = executor.get_incomplete_ranks()
    try:
        if pool is None or executor.world_size == 1:
            for rank in ranks:
                _run_task(executor, rank)
        else:
            for future in [pool.submit(_run_task, executor, rank) for rank in ranks]:
                future.result()
    except OSError as error:
        raise DataError(f"cannot go on in {executor.logging_dir.path}: {error}") from error


def _run_task(executor: LocalPipelineExecutor, rank: int) -> None:
    logger.disable("datatrove")  # its log on the terminal: what fails is raised anyway
    deepcopy(executor)._run_for_rank(rank)


def _completed(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "completions").glob("*")]


@contextmanager
def _watched(folder: Path, name: str, sizes: list[int]) -> Iterator[None]:
    """Show how much of a phase is completed."""
    if not sizes:
        with redirect_stderr(io.StringIO()):  # datatrove has bars of its own, over counts that mean little
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


def submit(chain: list[Phase], work: Path, slurm: Slurm) -> None:
    """Submit all phases to Slurm, each after the one before; completed tasks are left out."""
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
            job_name=f"corpus_{phase.name}",
            qos=None,
            venv_path=shlex.quote(str(activate)) if activate.exists() else None,
            sbatch_args=slurm.sbatch,
            depends=last,
            logging_dir=str(folder),
        )
    last.run()
    log.info("submitted to Slurm; its logs will be in %s", work / "logs")
