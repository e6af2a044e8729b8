"""F36: a long run with saves and evaluations leaves file descriptors, threads, memory and shared memory flat."""

import contextlib
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from dist import run_distributed

from tests.faults import job

STEPS, SAMPLE = 2000, 100
SETTLED = 600
"""Steps after which nothing may grow: allocators have met every size by then."""


def usage() -> tuple[int, int, int, int]:
    """Open files, threads, resident memory in KiB, files of shared memory that no process but ranks of the run maps."""
    resident = int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    files, threads = (len(list(Path(path).iterdir())) for path in ("/proc/self/fd", "/proc/self/task"))
    others = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != os.getppid():
                others.update(re.findall(r"/dev/shm/(\S+)", (process / "maps").read_text()))
    return files, threads, resident, len({path.name for path in Path("/dev/shm").iterdir()} - others)


def _soak(overrides: list[str]) -> list[tuple[int, int, int, int]]:
    seen = []
    with job.opened(overrides) as trainer:
        compare = trainer._compare_ranks

        def watched() -> None:
            compare()
            if trainer.state.step % SAMPLE == 0:
                seen.append(usage())

        trainer._compare_ranks = watched
        trainer.stage.fit(trainer)
    return seen


@pytest.mark.slow
@pytest.mark.thorough
def test_f36_nothing_grows_in_2000_steps(overrides, tmp_path):
    settings = [*job.settings(overrides, tmp_path, "run", STEPS), "checkpoint.interval=50", "stage.eval_interval=25"]
    settings += ["stage.eval_tokens=256", "model.num_layers=1", "reliability.replica_interval=10"]
    settings += ["reliability.straggler_interval=10", "checkpoint.asynchronous=true"]
    for rank, seen in enumerate(run_distributed(_soak, 2, settings, timeout=300)):
        files, threads, resident, shared = zip(*seen[SETTLED // SAMPLE - 1 :], strict=True)
        figures = f"rank {rank}: files {files}, threads {threads}, KiB {resident}, shared {shared}"
        print(figures)
        assert max(files) - min(files) <= 2, figures
        assert max(threads) - min(threads) <= 2, figures  # a save's writer comes and goes
        assert max(resident) <= 1.02 * resident[0], figures
        # The machine's: those of other processes come and go. This run saves and evaluates between two samples, so that
        # what it left behind would add up from each to the next.
        assert sum(b > a for a, b in pairwise(shared)) < len(shared) // 2, figures
