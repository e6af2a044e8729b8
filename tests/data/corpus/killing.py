"""Kills the work on a corpus in the middle."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def kill_while_filtering(command: Sequence[str], output: Path) -> None:
    """Start a command that makes the corpus `output`, and kill it with all its workers once one has filtered a part."""
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    completed = Path(f"{output}.work") / "logs" / "filter" / "completions"
    until = time.monotonic() + 60
    while not (completed.is_dir() and any(completed.iterdir())) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(completed.iterdir()) and not (output / "report.json").exists()
