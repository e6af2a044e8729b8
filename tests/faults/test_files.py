"""Broken and hostile checkpoints and tokenizers: a named error or the tensors meant, soon and in little memory.

`pytest -s` prints what became of the files of each format.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import fuzz

ROOT = Path(__file__).parents[2]
QUICK, ALL = 12, 400
"""Files of each format."""


def run(folder: Path, count: int, timeout: float) -> None:
    command = [sys.executable, "-m", "tests.faults.fuzz", str(folder), str(count)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout)
    for name, result in found["formats"].items():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result["counts"].items()))
        print(f"{name}: {sum(result['counts'].values())} files: {counts}; the slowest took {result['slowest']} s")
    print(f"memory grew by {found['grown'] >> 20} MiB")
    assert not (wrong := [text for result in found["formats"].values() for text in result["wrong"]]), "\n".join(wrong)
    for name, result in found["formats"].items():
        assert sum(result["counts"].values()) == count
        assert result["counts"].get("refused", 0) > count / 10, name  # files were broken indeed
    assert found["grown"] < fuzz.MEMORY


def test_a_few_files_of_every_format(tmp_path):
    run(tmp_path, QUICK, timeout=600)


@pytest.mark.slow
@pytest.mark.thorough
def test_many_files_of_every_format(tmp_path):
    """All in one process, which takes about a minute of the processor."""
    run(tmp_path, ALL, timeout=1700)
