"""Who is accused of a hang. What becomes of the accused is in tests/faults/test_ranks.py."""

import time
from pathlib import Path

import torch.distributed as dist
from dist import run_distributed

from megagpt.config.schema import ReliabilityConfig
from megagpt.train.watchdog import Watchdog


class Noting(Watchdog):
    """Keeps what it would say, and ends nothing."""

    said = ""

    def _end(self, hang: dict) -> None:
        self.said = hang["text"]
        self._done.set()


def _enter_or_not(folder: Path) -> str:
    config = ReliabilityConfig(heartbeat_timeout=1.0)
    with Noting(config, folder):  # the store remembers that both have left it
        dist.barrier()
    watchdog = Noting(config, folder)
    if watchdog.rank == 0:
        with watchdog:
            while not watchdog.said:
                time.sleep(0.1)
    dist.barrier()
    return watchdog.said


def test_a_rank_that_never_gave_a_sign_is_named(tmp_path):
    """As when it stops between the last collective before the first step and its first sign."""
    said, nothing = run_distributed(_enter_or_not, 2, tmp_path)
    assert "rank 1 gave no sign of life for 1 s" in said
    assert "Held up by rank 1 (" in said
    assert nothing == ""
