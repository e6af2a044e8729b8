"""Small saves whose tensors are a function of the step, for the tests of committing and keeping."""

import os
import re
import threading
from contextlib import contextmanager

import torch

from megagpt.checkpoint import Checkpointer, Shard, World
from megagpt.config.schema import CheckpointConfig
from tests.checkpoint.ranks import assert_holds, blank, share, tensors


def save(checkpointer, step, size=8):
    """Saves a step; its tensors are a function of the step."""
    world = checkpointer.world
    shards = share(tensors(step), world, "flat")
    if world.rank == 0:
        shards.append(Shard.whole("model/large", torch.full((size,), float(step))))
    checkpointer.save(step, shards, {"rng": torch.full((5,), step, dtype=torch.uint8)}, {"step": step}, {})


def save_steps(directory, *steps, world=None, **config):
    with Checkpointer(directory, CheckpointConfig(**config), world or World()) as checkpointer:
        for step in steps:
            save(checkpointer, step)


def assert_loads(directory, *allowed):
    """Asserts that a new attempt finds one of the allowed steps whole, and leaves no debris; returns the step."""
    with Checkpointer(directory, CheckpointConfig()) as checkpointer:
        path = checkpointer.find_newest()
        shards = blank(share(tensors(0), World(), "whole"))
        step = checkpointer.load(path, shards, strict=False)["step"]
        assert step in allowed and path.name == f"step_{step:08d}"
        assert_holds(shards, tensors(step))
    assert all(re.fullmatch(r"step_\d{8}|latest|\.run_lock\.json", name) for name in names(directory))
    return step


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def steps_in(directory):
    return [int(name[5:]) for name in names(directory) if re.fullmatch(r"step_\d{8}", name)]


@contextmanager
def failing_fsync(monkeypatch, code, thread_name=None):
    real = os.fsync

    def fsync(handle):
        if thread_name in (None, threading.current_thread().name):
            raise OSError(code, os.strerror(code))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield
