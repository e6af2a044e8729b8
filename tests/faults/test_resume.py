"""F01 to F04, F29: wherever a run is stopped, it goes on as the run that never stopped, with every sample once."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import OptimConfig
from megagpt.parallel import launch
from megagpt.parallel.replicas import fingerprint
from megagpt.train.schedules import global_batch_size
from tests.faults import job

STEPS = 24


class Struck(Exception):
    """What ends a run in these tests."""


def fail() -> None:
    raise Struck


def before(function: Callable, strike: Callable, due: Callable[[], bool]) -> Callable:
    def struck(*arguments):
        if due():
            strike()
        return function(*arguments)

    return struck


def after(function: Callable, strike: Callable, due: Callable[[], bool]) -> Callable:
    def struck(*arguments):
        now, result = due(), function(*arguments)
        if now:
            strike()
        return result

    return struck


def strike(trainer, place: str, step: int, what: Callable = fail) -> None:
    """Have `what` happen at a place of a step."""
    objective, calls = trainer.engine.objective, itertools.count(1)
    stage, checkpoints = trainer.stage, trainer.checkpoints
    begun, done = (lambda: trainer.state.step + 1 == step), (lambda: trainer.state.step == step)
    if place == "between micro-batches":
        objective.loss = before(objective.loss, what, lambda: begun() and next(calls) == 2)
    elif place == "in the step":
        trainer.engine.train_step = before(trainer.engine.train_step, what, begun)
    elif place == "before the evaluation":
        stage.evaluate = before(stage.evaluate, what, done)
    elif place == "after the evaluation":
        stage.evaluate = after(stage.evaluate, what, done)
    elif place == "before the save":
        checkpoints.save = before(checkpoints.save, what, done)
    elif place == "after the save":
        checkpoints.save = after(checkpoints.save, what, done)


def _train(overrides: list[str], stops: list[tuple[str, int]]) -> dict:
    """Train to the end, struck down at each of `stops` on the way."""
    trained = {}
    for stop in (*stops, None):
        with contextlib.suppress(Struck), job.opened(overrides) as trainer:
            stage = trainer.stage
            if stop:
                strike(trainer, *stop)

            def recorded(first, size, rank, ranks, inner=stage.loader.micro_batches):
                batches = list(inner(first, size, rank, ranks))
                seen = size, [int(fingerprint(batch.tokens)) for batch in batches]
                assert trained.setdefault(first, seen) == seen  # the same samples as when it was struck down here
                return iter(batches)

            stage.loader.micro_batches = recorded
            stage.fit(trainer)
            assert not stop  # else the fault did not strike
        digests = {shard.label: int(fingerprint(shard.data)) for shard in stage.shards(for_saving=False)}
        (corpus,) = stage.loader.corpora["train"]
        launch.leave_groups()
    return {
        "tensors": digests,
        "state": trainer.state.to_dict(),
        "losses": job.losses(stage.run_dir),
        "trained": trained,
        "epoch": corpus.samples_per_epoch,
    }


def _whole_and_parts(overrides: list[str]) -> tuple[dict, dict]:
    whole = _train([*overrides, "run_name=whole"], [])
    step, samples = 0, 0
    for step, (size, _) in enumerate(whole["trained"].values(), 1):  # noqa: B007
        samples += size
        if samples > whole["epoch"]:
            break
    stops = [
        ("between micro-batches", 2),  # in warm-up and ramp-up
        ("before the save", 5),  # of the first checkpoint
        ("after the save", 5),
        ("before the evaluation", 8),
        ("after the evaluation", 8),
        ("in the step", step),  # in which an epoch ends
        ("in the step", step + 1),
    ]
    return whole, _train([*overrides, "run_name=parts"], stops)


def test_f01_f02_f03_stopped_anywhere_nothing_changes(overrides, tmp_path):
    optim, tokens = OptimConfig(global_batch_size=16, ramp_start=8, ramp_tokens=32 * 8 * 6), 0
    for _ in range(STEPS):
        tokens += 32 * global_batch_size(optim, tokens, 2)
    settings = [*overrides, "model.num_layers=2", f"runs_dir={tmp_path}", f"optim.train_tokens={tokens}"]
    settings += ["stage.eval_interval=4", "stage.eval_tokens=256", "parallel.micro_batch_size=1", "parallel=data"]
    for whole, parts in run_distributed(_whole_and_parts, 2, settings):
        assert len(whole["losses"]) == STEPS
        assert parts == whole
        first = 0
        for start, (size, _) in sorted(parts["trained"].items()):
            assert start == first  # none left out, none twice
            first += size
        assert first == parts["state"]["samples"] > parts["epoch"]


# ---- other layouts ------------------------------------------------------------------------------------------------


def _save_again(overrides: list[str], name: str, layouts: list[list[str]]) -> list[float]:
    """Load the newest checkpoint in each layout, save it as a skipped step, and train a step that is not saved."""
    losses = []
    for layout in layouts:
        with job.opened([*overrides, f"run_name={name}", *layout]) as trainer:
            state, stage, engine = trainer.state, trainer.stage, trainer.engine
            state.step, state.skipped_steps = state.step + 1, state.skipped_steps + 1
            trainer.checkpoints.save(state)
            dims, micro = engine.dims, trainer.config.parallel.micro_batch_size
            batch = trainer.config.optim.global_batch_size
            batches = stage.loader.micro_batches(state.samples, batch, dims.data_rank, dims.data_size)
            losses.append(engine.train_step(batches, batch // micro // dims.data_size, 1e-3).loss)
        launch.leave_groups()
    return losses


def _four_ranks(overrides: list[str], layouts: list[list[str]]) -> list[float]:
    with job.opened([*overrides, "run_name=run"]) as trainer:
        trainer.stage.fit(trainer)
    launch.leave_groups()
    return _save_again(overrides, "run", layouts)


@pytest.mark.slow
def test_f04_layouts_take_over_from_each_other_bit_for_bit(overrides, tmp_path):
    """DP4, DP2 x TP2, TP4, DP2 x PP2, TP2 x PP2, DP4 again, and one rank: every hand saves what it loaded."""
    data, tensor, pipeline = [], "parallel.tensor_parallel_size=", "parallel.pipeline_parallel_size="
    settings = [*job.settings(overrides, tmp_path, "run", steps=4), "checkpoint.keep_last=20"]
    settings += ["model.hidden_dropout=0", "model.attention_dropout=0", "parallel.zero_stage=1"]
    hands = [data, [tensor + "2"], [tensor + "4"], [pipeline + "2"], [tensor + "2", pipeline + "2"], data]
    losses = run_distributed(_four_ranks, 4, settings, hands)[0]
    losses += run_distributed(_save_again, 1, settings, "run", [data])[0]
    print(f"next losses of {len(losses)} layouts within {max(losses) - min(losses):.1e}")
    assert len(losses) == len(hands) + 1
    assert max(losses) - min(losses) < 1e-6

    folder = tmp_path / "run" / "checkpoints"
    original, state = job.tensors(folder / "step_00000004")
    assert any(name.startswith("optimizer/") for name in original)
    for hand in range(len(losses)):
        tensors, state_after = job.tensors(folder / f"step_{5 + hand:08d}")
        assert state_after == state | {"step": 5 + hand, "skipped_steps": 1 + hand}
        assert tensors.keys() == original.keys()
        assert all(torch.equal(tensors[name], original[name]) for name in original)


# ---- signals ------------------------------------------------------------------------------------------------------


def _signalled(overrides: list[str], cases: list[tuple[str, int, int]]) -> list[tuple[bool, int, int]]:
    """Whether each run finished, its step, and how many checkpoints it committed."""
    outcomes = []
    for number, (place, rank, times) in enumerate(cases):

        def send(times=times) -> None:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)

        with job.opened([*overrides, f"run_name=run{number}"]) as trainer:
            if trainer.engine.dims.rank == rank:
                strike(trainer, place, 4, send)
            trainer.stage.fit(trainer)
        saved = len(list((trainer.stage.run_dir / "checkpoints").glob("step_*")))
        outcomes.append((trainer.finished, trainer.state.step, saved))
        launch.leave_groups()
    return outcomes


@pytest.mark.slow
def test_f29_a_signal_at_any_moment_stops_all_ranks_after_one_save(overrides, tmp_path):
    """To one rank only, in a step, in an evaluation, before and after a save, and twice."""
    settings = [*job.settings(overrides, tmp_path, "run", steps=9), "parallel=data", "checkpoint.keep_last=9"]
    settings += ["stage.eval_interval=4", "stage.eval_tokens=256", "checkpoint.interval=4"]
    cases = [
        ("between micro-batches", 1, 1),
        ("in the step", 0, 2),
        ("before the save", 1, 1),
        ("after the save", 0, 1),
        ("before the evaluation", 1, 1),
    ]
    for outcomes in run_distributed(_signalled, 2, settings, cases):
        assert outcomes[:2] == [(False, 4, 1)] * 2
        # The wish is agreed on after a step: what comes behind this step's save ends with the next.
        assert outcomes[2:] == [(False, 5, 2)] * 3
