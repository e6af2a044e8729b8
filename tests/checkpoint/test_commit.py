"""A save is committed whole or not at all, whatever kills it, and what need not be kept goes away."""

import errno
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from dist import run_distributed

from megagpt.checkpoint import Checkpointer, current_world, find_newest
from megagpt.config.schema import CheckpointConfig
from megagpt.errors import CheckpointError
from tests.checkpoint.ranks import run_ranks
from tests.checkpoint.steps import assert_loads, failing_fsync, names, save, save_steps, steps_in

FORK = multiprocessing.get_context("fork")


# ---- killed at every point --------------------------------------------------------------------------------------


def kill_at(event):
    """Makes this process count what it does to the disk and kill itself before number `event`; returns the counter."""
    counter = multiprocessing.Value("i", 0)

    def counted(function):
        def call(*args, **kwargs):
            with counter.get_lock():
                counter.value += 1
                if counter.value == event:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    ThreadPoolExecutor.submit = counted(ThreadPoolExecutor.submit)  # once for every chunk written
    return counter


def save_and_die(directory, event, ranks, asynchronous, results):
    counter = kill_at(event)
    config = {"keep_last": 1, "asynchronous": asynchronous}
    assert run_ranks(ranks, lambda world: save_steps(directory, 2, world=world, **config)) == [None] * ranks
    results.put(counter.value)


def run_child(*args):
    results = FORK.SimpleQueue()
    child = FORK.Process(target=save_and_die, args=(*args, results))
    child.start()
    child.join()
    return child.exitcode, results


@pytest.mark.parametrize(("ranks", "asynchronous"), [(1, False), (2, True)])
def test_killed_at_any_point_the_old_or_the_new_one_loads(tmp_path, ranks, asynchronous):
    original = tmp_path / "original"
    run_ranks(ranks, lambda world: save_steps(original, 1, world=world))
    shutil.copytree(original, tmp_path / "whole")
    exitcode, results = run_child(tmp_path / "whole", 0, ranks, asynchronous)
    assert exitcode == 0 and steps_in(tmp_path / "whole") == [2]
    events, found = results.get(), []
    print(f"{events} points of a save on {ranks} ranks")
    assert events > 20
    for event in range(1, events + 1):
        directory = tmp_path / str(event)
        shutil.copytree(original, directory)
        assert run_child(directory, event, ranks, asynchronous)[0] == -signal.SIGKILL
        found.append(assert_loads(directory, 1, 2))
        save_steps(directory, 3)  # and the run goes on
        assert_loads(directory, 3)
    assert found[0] == 1 and found[-1] == 2 and found == sorted(found)


def die_on_rank_one(directory):
    world = current_world()
    if world.rank == 1:
        kill_at(2)
    save_steps(directory, 2, world=world)


def test_a_killed_rank_leaves_the_old_one(tmp_path):
    save_steps(tmp_path, 1)
    with pytest.raises(AssertionError, match=r"rank 0 of 2 failed|exit codes \[.*, -9\]"):
        run_distributed(die_on_rank_one, 2, tmp_path)
    assert_loads(tmp_path, 1)


def test_the_very_first_save_killed_is_no_checkpoint(tmp_path):
    assert run_child(tmp_path, 3, 1, False)[0] == -signal.SIGKILL
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        assert checkpointer.find_newest() is None
    assert names(tmp_path) == [".run_lock.json"]


def test_all_is_durable_before_it_is_named(tmp_path, monkeypatch):
    """The order of a commit: files, their folder, its rename, the parent, then `latest` in the same way."""
    events, real_fsync = [], os.fsync

    def fsync(handle):
        events.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name.split(".tmp")[0]))
        real_fsync(handle)

    def renaming(real):
        def rename(source, target):
            events.append(("rename", Path(target).name))
            real(source, target)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renaming(getattr(os, name)))
    save_steps(tmp_path, 1)
    folder = "step_00000001"
    files = [("fsync", path.name) for path in (tmp_path / folder).iterdir() if path.name != "manifest.json"]
    assert sorted(events[: len(files)]) == sorted(files)
    assert events[len(files) :] == [
        ("fsync", "manifest.json"),
        ("fsync", folder),
        ("rename", folder),
        ("fsync", tmp_path.name),
        ("fsync", "latest"),
        ("rename", "latest"),
        ("fsync", tmp_path.name),
    ]


# ---- disks that refuse ------------------------------------------------------------------------------------------


CAUSES = {
    errno.ENOSPC: r"no space left on the disk \(ENOSPC; [\d,]+ bytes needed, [\d,]+ free\)",
    errno.EDQUOT: "disk quota is used up",
    errno.EROFS: "read-only",
    errno.EACCES: "permission denied",
    errno.EFBIG: "limit on file sizes",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("code", CAUSES)
def test_a_failed_write_is_told_by_name_and_leaves_the_old_one(tmp_path, monkeypatch, code, asynchronous):
    def attempt(world):
        with Checkpointer(tmp_path, CheckpointConfig(asynchronous=asynchronous), world) as checkpointer:
            save(checkpointer, 1)
            checkpointer.poll(wait=True)
            world.gather(None)
            with failing_fsync(monkeypatch, code) if world.rank == 0 else nullcontext():
                world.gather(None)
                with pytest.raises(CheckpointError) as caught:
                    save(checkpointer, 2)
                    checkpointer.poll(wait=True)
                world.gather(None)
            assert checkpointer.poll() is None
            assert steps_in(tmp_path) == [1] and "tmp" not in "".join(names(tmp_path))
            world.gather(None)
            save(checkpointer, 3)  # the disk is well again
            return str(caught.value)

    first, second = run_ranks(2, attempt)
    assert first == second and re.search(CAUSES[code], first) and re.match(r"rank [01]: cannot write .*/rank_", first)
    assert_loads(tmp_path, 3)


def save_large(directory, asynchronous):
    with Checkpointer(directory, CheckpointConfig(asynchronous=asynchronous)) as checkpointer:
        save(checkpointer, 2, size=1 << 20)
        checkpointer.poll(wait=True)


def limited(directory, asynchronous, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    with pytest.raises(CheckpointError) as caught:
        save_large(directory, asynchronous)
    results.put(str(caught.value))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_file_size_limit(tmp_path, asynchronous):
    save_steps(tmp_path, 1)
    results = FORK.SimpleQueue()
    child = FORK.Process(target=limited, args=(tmp_path, asynchronous, results))
    child.start()
    child.join()
    assert re.search(r"ulimit -f.*4,\d{3},\d{3} bytes needed", results.get())
    assert_loads(tmp_path, 1)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 3 MB of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk(small_disk, asynchronous):
    save_steps(small_disk, 1)
    with pytest.raises(CheckpointError, match=r"no space left on the disk .ENOSPC; 4,\d{3},\d{3} bytes needed"):
        save_large(small_disk, asynchronous)
    assert_loads(small_disk, 1)


def test_a_read_only_disk(small_disk):
    save_steps(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=f"cannot write in {small_disk}: the file system is read-only"):
        save_steps(small_disk, 2)
    assert find_newest(small_disk).name == "step_00000001"


def test_a_folder_that_vanishes(tmp_path):
    with Checkpointer(tmp_path / "run", CheckpointConfig()) as checkpointer:
        save(checkpointer, 1)
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(CheckpointError, match="the folder is gone"):
            save(checkpointer, 2)
