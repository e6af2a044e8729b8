"""The best checkpoint: named when it is committed, kept, given to others, and put right when a run goes back."""

import json
import logging

import pytest
import torch

from megagpt.checkpoint import Checkpointer, Shard, find
from megagpt.config.schema import CheckpointConfig
from megagpt.errors import CheckpointError
from megagpt.train.state import TrainState
from tests.checkpoint.ranks import run_ranks
from tests.checkpoint.steps import failing_fsync, steps_in


def save(checkpointer, step, best=False):
    checkpointer.save(step, [Shard.whole("model/x", torch.full((4,), float(step)))], {}, {"step": step}, {})
    if best:
        checkpointer.name_best(step)


def fill(directory, *steps, best=(), **config):
    with Checkpointer(directory, CheckpointConfig(**config)) as checkpointer:
        for step in steps:
            save(checkpointer, step, step in best)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_others_get_the_best_and_the_run_its_newest(tmp_path, asynchronous):
    folder = tmp_path / "checkpoints"
    fill(folder, 1, 2, 3, 4, best=(1, 2), keep_last=1, asynchronous=asynchronous)
    assert steps_in(folder) == [2, 4]
    assert find(tmp_path).name == find(folder).name == "step_00000002"
    assert find(folder / "step_00000004").name == "step_00000004"
    with Checkpointer(folder, CheckpointConfig()) as checkpointer:
        assert checkpointer.find_newest().name == "step_00000004"


def test_a_best_one_that_was_not_committed_is_not_named(tmp_path, monkeypatch):
    fill(tmp_path, 1, best=(1,))
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        with failing_fsync(monkeypatch, 28), pytest.raises(CheckpointError):
            save(checkpointer, 2, best=True)
        assert find(tmp_path).name == "step_00000001"


@pytest.mark.parametrize("damage", ["nonsense", "step_00000009", "bits"])
def test_a_damaged_best_one_is_said_and_the_newest_taken(tmp_path, caplog, damage):
    fill(tmp_path, 1, 2, best=(1,))
    if damage == "bits":
        (file,) = (tmp_path / "step_00000001").glob("rank_*")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (tmp_path / "best").write_text(damage)
    caplog.set_level(logging.ERROR)
    assert find(tmp_path).name == "step_00000002"
    assert "best" in caplog.text and (damage in caplog.text or damage == "bits")
    fill(tmp_path, 3)  # and saving goes on


def test_the_name_can_be_put_right(tmp_path):
    fill(tmp_path, 1, 2, 3, best=(3,), keep_last=3)
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        assert checkpointer.name_best(2)
        assert find(tmp_path).name == "step_00000002"
        assert not checkpointer.name_best(7)
        assert find(tmp_path).name == "step_00000003"
        assert not (tmp_path / "best").exists()


def test_every_rank_gets_the_same(tmp_path):
    fill(tmp_path, 1, 2, best=(1,))
    assert run_ranks(2, lambda world: find(tmp_path, world).name) == ["step_00000001"] * 2


def test_what_is_best():
    state = TrainState()
    for step, value in enumerate((float("nan"), 3.0, 2.0, float("-inf"), 2.5, 2.0), 1):
        state.step = step
        state.consider("validation_loss", value, lowest=True)
    assert (state.best_step, state.best_value) == (3, 2.0)
    state.step = 7
    state.consider("validation_accuracy", 0.1, lowest=False)  # another metric begins anew
    assert (state.best_metric, state.best_step, state.best_value) == ("validation_accuracy", 7, 0.1)
    state.step = 8
    state.consider("validation_accuracy", 0.2, lowest=False)
    assert state.best_step == 8
    assert TrainState(**json.loads(json.dumps(state.to_dict()))) == state
    older = {name: value for name, value in state.to_dict().items() if not name.startswith("best")}
    assert TrainState(**older).best_step is None
