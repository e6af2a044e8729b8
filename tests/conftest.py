"""Settings shared by all tests."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
# For spawned ranks to find test modules (as tests.*), `dist`, and the command lines.
sys.path += [str(folder) for folder in (ROOT / "tests", ROOT / "tools", ROOT) if str(folder) not in sys.path]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets beside the project; tests that need them are skipped where they are absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the data sets are not beside the project (../shared/data)")
    return path
