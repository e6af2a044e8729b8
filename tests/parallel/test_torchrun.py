"""The launcher: signals reach the ranks, and its exit code is that of the rank that failed."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from megagpt.errors import HUNG, STOPPED_BY_SIGNAL, ConfigError, DataError, DistributedError
from megagpt.parallel.torchrun import verdict
from tests.faults import job

LAUNCHER = [sys.executable, "-m", "megagpt.parallel.torchrun", "--nproc-per-node=2"]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([1, DataError.exit_code, -signal.SIGTERM], DataError.exit_code),
        ([-signal.SIGTERM, -signal.SIGKILL, DistributedError.exit_code], 128 + signal.SIGKILL),
        ([1, HUNG, HUNG], HUNG),
        ([STOPPED_BY_SIGNAL, STOPPED_BY_SIGNAL], STOPPED_BY_SIGNAL),
        ([-signal.SIGTERM, 1], 1),
        # NCCL ends ranks by SIGABRT when another does not come
        ([-signal.SIGABRT, HUNG, -signal.SIGABRT], HUNG),
        ([-signal.SIGABRT, 1], 1),
        ([-signal.SIGABRT, -signal.SIGTERM], 128 + signal.SIGABRT),
    ],
)
def test_the_cause_is_told_from_its_consequences(codes, expected):
    failures = {10 + rank: SimpleNamespace(exitcode=code, timestamp=1000) for rank, code in enumerate(codes)}
    code, text = verdict(failures)
    first = next(rank for rank, code in enumerate(codes) if expected in (code, 128 - code))
    assert code == expected
    assert text.startswith(f"rank {10 + first} on ")


def test_ranks_that_the_launcher_had_to_kill_are_no_cause():
    """A rank in a collective of NCCL heeds no SIGTERM, and torchrun sends SIGKILL 30 s after the first failure."""
    killed = SimpleNamespace(exitcode=-signal.SIGKILL, timestamp=1030)
    assert verdict({0: killed, 1: SimpleNamespace(exitcode=1, timestamp=1000)})[0] == 1
    assert verdict({0: killed, 1: SimpleNamespace(exitcode=1, timestamp=1029)})[0] == 128 + signal.SIGKILL


def test_a_rank_that_fails_is_told_and_ends_whatever_its_groups_do(overrides, tmp_path):
    """Neither rank would ever come back from destroying its groups, as on NCCL while others are in a collective."""
    log, markers, faults = tmp_path / "log", tmp_path / "markers", ("data@3@1", "groups@3@0", "groups@3@1")
    markers.mkdir()
    settings = [*job.settings(overrides, tmp_path, "run", steps=100), "parallel=data"]
    process = job.start([*LAUNCHER, str(job.INJECT), str(markers), *faults, "--", *settings], log)
    job.wait_for((markers / faults[0]).exists, process, log)
    assert process.wait(timeout=job.PATIENCE / 3) == DataError.exit_code, log.read_text()
    text = log.read_text()
    assert text.count("injected.jsonl:7: broken") == 1
    assert "lost contact" not in text
    assert not (markers / faults[2]).exists()  # it has not even tried


@pytest.mark.slow
def test_a_signal_reaches_the_ranks_and_a_killed_rank_is_named(overrides, tmp_path):
    log, outcome, run = tmp_path / "log", tmp_path / "outcome", tmp_path / "run"
    settings = [*job.settings(overrides, tmp_path, "run", steps=100_000), "parallel=data"]
    process = job.start([*LAUNCHER, "-m", "megagpt", *settings], log)
    job.wait_for(lambda: job.steps(run) > 2, process, log)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=job.PATIENCE) == STOPPED_BY_SIGNAL, log.read_text()
    assert "the same command goes on from there" in log.read_text()
    stopped = job.steps(run)

    process = job.start([*LAUNCHER, f"--outcome={outcome}", "-m", "megagpt", *settings], log)
    job.wait_for(lambda: job.steps(run) > stopped, process, log)
    os.kill(job.ranks_of(process.pid)[1], signal.SIGKILL)
    assert process.wait(timeout=job.PATIENCE) == 128 + signal.SIGKILL, log.read_text()
    assert outcome.read_text().split()[:4] == ["2", str(128 + signal.SIGKILL), "rank", "1"]


def test_a_broken_configuration_has_its_own_code(tmp_path):
    process = job.start([*LAUNCHER, "-m", "megagpt", "optim.lr=-1"], tmp_path / "log")
    assert process.wait(timeout=job.PATIENCE) == ConfigError.exit_code
    assert "optim.lr (-1" in (tmp_path / "log").read_text()
