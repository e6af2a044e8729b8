"""Saving in the background, what is kept and what goes away, and one writer a folder."""

import errno
import logging
import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from megagpt.checkpoint import Checkpointer, Shard, find_newest
from megagpt.config.schema import CheckpointConfig
from megagpt.errors import CheckpointError
from tests.checkpoint.ranks import run_ranks
from tests.checkpoint.steps import assert_loads, failing_fsync, names, save, save_steps, steps_in

FORK = multiprocessing.get_context("fork")


# ---- in the background ------------------------------------------------------------------------------------------


@contextmanager
def held_writer(monkeypatch):
    """Holds the writer threads back until the event that it yields is set."""
    gate, real = threading.Event(), os.fsync

    def fsync(handle):
        if threading.current_thread().name == "checkpoint-writer":
            assert gate.wait(30)
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield gate
        gate.set()


def test_training_goes_on_while_a_save_is_written(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    weight = torch.zeros(100)
    with Checkpointer(tmp_path, CheckpointConfig(asynchronous=True)) as checkpointer, held_writer(monkeypatch) as gate:
        checkpointer.save(1, [Shard.whole("model/x", weight)], {}, {}, {})
        for _ in range(3):
            weight += 1
            assert checkpointer.poll() is None
        assert steps_in(tmp_path) == [] and "saved" not in caplog.text
        threading.Timer(0.2, gate.set).start()
        checkpointer.save(2, [Shard.whole("model/x", weight)], {}, {}, {})  # waits for the first
        assert "step_00000001" in names(tmp_path) and "saved" in caplog.text
    assert find_newest(tmp_path).name == "step_00000002"
    restored = Shard.whole("model/x", torch.empty(100))
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        for step, value in ((1, 0.0), (2, 3.0)):
            checkpointer.load(tmp_path / f"step_{step:08d}", [restored])
            assert torch.equal(restored.data, torch.full((100,), value))


@pytest.mark.parametrize("when", ["poll", "save", "close"])
def test_a_background_failure_is_raised_at_the_next_call(tmp_path, monkeypatch, when, caplog):
    caplog.set_level(logging.INFO)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(asynchronous=True))
    with failing_fsync(monkeypatch, errno.ENOSPC, "checkpoint-writer"):
        save(checkpointer, 1)
        calls = {"poll": lambda: checkpointer.poll(wait=True), "save": lambda: save(checkpointer, 2)}
        with pytest.raises(CheckpointError, match="no space left"):
            calls.get(when, checkpointer.close)()
    checkpointer.close()
    assert "saved" not in caplog.text and names(tmp_path) == [".run_lock.json"]


def test_an_exception_gives_the_pending_save_up(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    save_steps(tmp_path, 1)
    with (
        pytest.raises(ZeroDivisionError),
        held_writer(monkeypatch) as gate,
        Checkpointer(tmp_path, CheckpointConfig(asynchronous=True)) as checkpointer,
    ):
        save(checkpointer, 2)
        gate.set()
        raise ZeroDivisionError
    assert "00000002" not in caplog.text
    assert_loads(tmp_path, 1)


# ---- what is kept -----------------------------------------------------------------------------------------------


def test_retention(tmp_path):
    save_steps(tmp_path, *range(1, 11), keep_last=2, keep_every=4)
    assert steps_in(tmp_path) == [4, 8, 9, 10]
    assert_loads(tmp_path, 10)


def test_a_refused_checkpoint_does_not_count_as_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, keep_last=3)
    (tmp_path / "step_00000003" / "state.json").write_text("{}")
    with Checkpointer(tmp_path, CheckpointConfig(keep_last=2)) as checkpointer:
        assert checkpointer.find_newest().name == "step_00000002"
        save(checkpointer, 4)
    assert steps_in(tmp_path) == [2, 4]


def test_a_run_rolled_back_by_hand_overwrites_its_old_future(tmp_path):
    save_steps(tmp_path, 1, 2, 3, keep_last=3)
    (tmp_path / "latest").write_text("step_00000001\n")
    with Checkpointer(tmp_path, CheckpointConfig(keep_last=2)) as checkpointer:
        assert checkpointer.find_newest().name == "step_00000001"
        before = (tmp_path / "step_00000002" / "manifest.json").read_text()
        save(checkpointer, 2)
        assert (tmp_path / "step_00000002" / "manifest.json").read_text() != before
        assert steps_in(tmp_path) == [1, 2, 3]
    assert assert_loads(tmp_path, 2) == 2


def test_a_step_is_saved_once(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        save(checkpointer, 1)
        with failing_fsync(monkeypatch, errno.EIO):
            save(checkpointer, 1)
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        checkpointer.find_newest()
        with failing_fsync(monkeypatch, errno.EIO):
            save(checkpointer, 1)


# ---- one writer -------------------------------------------------------------------------------------------------


def hold(directory, ready):
    checkpointer = Checkpointer(directory, CheckpointConfig())
    ready.put(checkpointer.directory == directory.resolve())
    signal.pause()


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path):
    ready = FORK.SimpleQueue()
    child = FORK.Process(target=hold, args=(tmp_path, ready))
    child.start()
    assert ready.get()
    with pytest.raises(CheckpointError, match=rf'another run is writing.*"pid": {child.pid},'):
        Checkpointer(tmp_path, CheckpointConfig())
    save_steps(tmp_path / "other", 1)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    save_steps(tmp_path, 1)
    assert Path(tmp_path / "latest").read_text() == "step_00000001\n"


def test_the_first_of_several_errors_is_the_one_that_all_ranks_raise():
    errors = (OSError("third"), None, ValueError("first"), CheckpointError("second"))

    def fail(world):
        world.fail_together(errors[world.rank], when=(3.0, None, 1.0, 2.0)[world.rank])

    assert [str(error) for error in run_ranks(4, fail)] == ["rank 2: ValueError: first"] * 4
