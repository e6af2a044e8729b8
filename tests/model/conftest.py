"""Groups of one rank for the tests of the model."""

import pytest

from megagpt.config.schema import ParallelConfig
from megagpt.parallel import launch


@pytest.fixture(scope="module")
def one_rank():
    launch.initialize(ParallelConfig(), seed=0)
    yield
    launch.shutdown()
