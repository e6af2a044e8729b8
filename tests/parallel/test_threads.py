"""Threads of ranks that the launcher starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = "import os, sys; sys.stderr.write(os.environ['OMP_NUM_THREADS'] + '\\n')"


@pytest.mark.parametrize(("given", "expected"), [(None, max(1, len(os.sched_getaffinity(0)) // 2)), ("3", 3)])
def test_ranks_share_the_cores_and_nothing_is_said_about_it(given, expected, tmp_path: Path):
    (tmp_path / "count.py").write_text(COUNT)
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if given:
        own["OMP_NUM_THREADS"] = given
    command = [sys.executable, "-m", "megagpt.parallel.torchrun", "--nproc-per-node", "2", str(tmp_path / "count.py")]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr.split() == [str(expected)] * 2
