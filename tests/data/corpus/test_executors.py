"""Tasks on Ray: what is killed is started again, and what fails says so."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")
pytest.importorskip("ray", reason="megagpt[ray] is not installed")

import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from megagpt.data.corpus.cluster import Ray
from megagpt.data.corpus.executors import Phase, run_on_ray
from megagpt.data.corpus.task import Task
from megagpt.errors import ConfigError, DataError

pytestmark = pytest.mark.slow


class Work(Task):
    """Notes that it has begun, does something, and writes a file."""

    name = "work"

    def __init__(self, work: Path, what):
        super().__init__(work)
        self.what = what

    def do(self, rank, tasks):
        attempt = len(list(self.work.glob(f"begun_{rank}_*")))
        (self.work / f"begun_{rank}_{attempt}").write_text(ray.get_runtime_context().get_node_id())
        self.what(rank, attempt)
        (self.work / f"done_{rank}").touch()


@pytest.fixture(autouse=True)
def sent_along():
    """Classes of this file go to Ray's processes by value."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node with two CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield cluster
    cluster.shutdown()


def run(cluster: Cluster, work: Path, what) -> None:
    run_on_ray([Phase("work", [Work(work, what)], 4)], work, [], 2, Ray(cluster.address))


def done(work: Path) -> list[str]:
    return sorted(path.name for path in work.glob("done_*"))


def test_a_killed_task_is_started_again(cluster, tmp_path):
    def what(rank, attempt):
        if rank == 2 and attempt < 2:
            os.kill(os.getpid(), signal.SIGKILL)

    run(cluster, tmp_path, what)
    assert done(tmp_path) == [f"done_{rank}" for rank in range(4)]
    assert len(list(tmp_path.glob("begun_2_*"))) == 3 and len(list(tmp_path.glob("begun_1_*"))) == 1


def test_one_that_is_always_killed_is_reported(cluster, tmp_path):
    def what(rank, attempt):
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"a task was killed 4 times on Ray.*it goes on from here"):
        run(cluster, tmp_path, what)
    run(cluster, tmp_path, lambda rank, attempt: None)
    assert done(tmp_path) == [f"done_{rank}" for rank in range(4)]


@pytest.mark.parametrize("error", [DataError("bad.warc: cannot be read"), OSError(28, "No space left on device")])
def test_what_a_task_raises_is_raised(cluster, tmp_path, error):
    def what(rank, attempt):
        if rank == 1:
            raise error

    with pytest.raises(DataError, match=str(error.args[-1])):
        run(cluster, tmp_path, what)
    assert "done_1" not in done(tmp_path) and len(list(tmp_path.glob("begun_1_*"))) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379"])
def test_a_cluster_that_is_not_there(tmp_path, address):
    with pytest.raises(ConfigError, match=rf"--ray {address}: "):
        run_on_ray([], tmp_path, [], 1, Ray(address))


def test_tasks_of_a_node_that_dies_go_to_another(cluster, tmp_path):
    lost = cluster.add_node(num_cpus=2)

    def what(rank, attempt):
        time.sleep(4 if attempt == 0 else 0)

    def kill():
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if any(path.read_text() == lost.node_id for path in tmp_path.glob("begun_*")):
                break
            time.sleep(0.1)
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    run(cluster, tmp_path, what)
    thread.join()
    assert done(tmp_path) == [f"done_{rank}" for rank in range(4)]
    began = [path.read_text() for path in tmp_path.glob("begun_*")]
    assert lost.node_id in began and len(began) > 4
