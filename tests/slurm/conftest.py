"""A cluster for the tests of this folder."""

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes of eight declared GPUs."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), nodes=3)
    cluster.start()
    yield cluster
    cluster.stop()
