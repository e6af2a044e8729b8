"""Ctrl-C: whatever runs ends with one line that says how to go on, and no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megagpt.checkpoint import find
from megagpt.errors import STOPPED_BY_SIGNAL, Interrupted
from tests.faults import job

GOES_ON = "the same command goes on"


def start(log: Path, *arguments: str) -> subprocess.Popen:
    """The command as the foreground job of a terminal: a process group of its own."""
    command = [sys.executable, "-m", "megagpt.cli", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True
    )


def press_ctrl_c(process: subprocess.Popen, log: Path) -> tuple[int, list[str]]:
    """Exit code and the lines that were written after the key was pressed."""
    before = len(log.read_text().splitlines())
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(timeout=60)
    assert "Traceback" not in log.read_text()
    return code, log.read_text().splitlines()[before:]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_saves_and_says_how_to_go_on(ranks, overrides, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = [*job.settings(overrides, tmp_path, "run", steps=100_000), "checkpoint.interval=0"]
    process = start(log, f"--nproc-per-node={ranks}", *settings)
    job.wait_for(lambda: job.steps(run) > 2, process, log)
    code, lines = press_ctrl_c(process, log)
    assert code == (STOPPED_BY_SIGNAL if ranks == 1 else Interrupted.exit_code)
    assert int(find(run).name.removeprefix("step_")) == job.steps(run)
    assert GOES_ON in lines[-1]
    assert not [line for line in lines if "signal SIG" in line or "exitcode" in line]  # the launcher's own words


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_only_starting_ends_with_one_line(ranks, overrides, tmp_path):
    log = tmp_path / "log"
    settings = job.settings(overrides, tmp_path, "run", steps=100_000)
    process = start(log, f"--nproc-per-node={ranks}", *settings)
    heavy = process.pid

    def importing() -> bool:  # torch is on its way in, in the launcher's ranks or in the one process
        pids = [heavy] if ranks == 1 else job.ranks_of(heavy)
        return bool(pids) and all("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids)

    job.wait_for(importing, process, log)
    code, lines = press_ctrl_c(process, log)
    assert code == Interrupted.exit_code
    assert len(lines) == 1 and GOES_ON in lines[0]
