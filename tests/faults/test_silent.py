"""F32, F31, F22: damage that raises no error, losses that jump, and ranks that are slow."""

import itertools
import json
import time
from types import SimpleNamespace

import pytest
import torch
from dist import run_distributed

from megagpt.config.schema import ParallelConfig, ReliabilityConfig
from megagpt.errors import ReplicasDiverged, TrainingDiverged
from megagpt.parallel.replicas import fingerprint, odd_ranks
from megagpt.train.spikes import SpikeGuard, next_sample
from megagpt.train.state import TrainState
from megagpt.train.stragglers import Stragglers, slow_ranks
from tests.faults import job

NORM, MATRIX = "decoder.final_layernorm.weight", "decoder.layers.0.mlp.linear_fc2.weight"


def _flipping(engine, name: str, rank: int):
    """The engine's `train_step`, which flips a bit of a parameter of one rank at the end of its third call."""
    train_step, calls = engine.train_step, itertools.count(1)

    def flip(*arguments):
        result = train_step(*arguments)
        if next(calls) != 3:
            return result
        (shard,) = (shard for shard in engine.shards(for_saving=False) if shard.name == name)  # collective
        if engine.dims.rank == rank:
            bits = shard.data.view(-1)[:1].view(torch.uint8)[:1]
            bits ^= 1
        return result

    return flip


def _flip_and_train(overrides: list[str], damaged: list[tuple[str, int]]) -> list[str]:
    """Train with a bit flipped after step 3, a run for each parameter; returns what the error said."""
    from megatron.core import parallel_state

    messages = []
    for number, (name, rank) in enumerate(damaged):
        with job.opened([*overrides, f"run_name=run{number}"]) as trainer:
            trainer.engine.train_step = _flipping(trainer.engine, f"model/{name}", rank)
            try:
                trainer.stage.fit(trainer)
                messages.append("")
            except ReplicasDiverged as error:
                messages.append(str(error))
        parallel_state.destroy_model_parallel()
    return messages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout", "damaged"),
    [
        (4, ["parallel.tensor_parallel_size=2", "parallel.zero_stage=0"], [(NORM, 3), (MATRIX, 1)]),
        (2, ["parallel=zero2", "parallel.tensor_parallel_size=2"], [(NORM, 1)]),
    ],
    ids=["tp2dp2", "zero2-tp2"],
)
def test_f32_a_flipped_bit_is_named(ranks, layout, damaged, overrides, tmp_path):
    """Of the four copies of a norm one is wrong; of two copies of a matrix's shard it is one or the other."""
    if "parallel=zero2" in layout:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    settings = job.settings(overrides, tmp_path, "run", steps=6)
    settings += ["reliability.replica_interval=3", *layout]
    for messages in run_distributed(_flip_and_train, ranks, settings, damaged):
        named = "rank 3 on" if ranks == 4 else "rank 0 on"
        assert messages[0].startswith(f"replicas of model/{NORM} ({named}"), messages
        assert messages[0].count("rank ") == (1 if ranks == 4 else 2)
        if ranks == 4:
            assert messages[1].startswith(f"replicas of model/{MATRIX}[") and messages[1].count("model/") == 1
            assert "rank 1 on" in messages[1] and "or rank 3 on" in messages[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_fingerprint(dtype, monkeypatch):
    monkeypatch.setattr("megagpt.parallel.replicas.CHUNK", 100)
    data = torch.randint(0, 100, (7, 60), generator=torch.Generator().manual_seed(0)).to(dtype)
    numbers = data.view(-1).view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    expected = sum((2 * i + 1) * x for i, x in enumerate(numbers.tolist())) % 2**64
    assert fingerprint(data).item() % 2**64 == expected
    for element, bit in itertools.product((0, 99, 100, 419), range(8 * dtype.itemsize)):
        other = data.clone()
        value = other.view(-1)[element : element + 1].view(torch.uint8)
        value[bit // 8] ^= 1 << bit % 8
        assert fingerprint(other) != fingerprint(data)


def test_odd_ranks():
    assert odd_ranks({0: 5, 3: 5, 6: 5}) == []
    assert odd_ranks({0: 5, 3: 6, 6: 5}) == [3]
    assert odd_ranks({0: 5, 3: 6}) == [0, 3]


# ---- spikes -------------------------------------------------------------------------------------------------------


class _Garbage:
    """The samples of a run, of which one window is noise."""

    def __init__(self, inner, window: range) -> None:
        self.inner, self.window = inner, window

    def __getitem__(self, index: int):
        sample = self.inner[index]
        noise = torch.Generator().manual_seed(index)
        return torch.randint(0, 250, sample.shape, generator=noise).numpy() if index in self.window else sample


def _train_on_garbage(overrides: list[str], windows: list[range], stops: tuple[int, ...] = ()) -> tuple:
    """Train, in several parts if `stops` says so; returns hashes, state and the ids of samples of applied steps."""
    from megatron.core import parallel_state

    tokens = int(next(text for text in reversed(overrides) if "train_tokens" in text).split("=")[1])
    for stop in (*stops, tokens // 256):
        with job.opened([*overrides, f"optim.train_tokens={256 * stop}"]) as trainer:
            stage = trainer.stage
            for window in windows:
                stage.loader.mixture = _Garbage(stage.loader.mixture, window)
            try:
                stage.fit(trainer)
                message = ""
            except TrainingDiverged as error:
                message = str(error)
        hashes = {shard.label: int(fingerprint(shard.data)) for shard in stage.shards(for_saving=False)}
        state = trainer.state.to_dict()
        lines = (stage.run_dir / "metrics.jsonl").read_text().splitlines()
        parallel_state.destroy_model_parallel()
    return hashes, state, [json.loads(line) for line in lines], message


def _spikes(settings: list[str]) -> list[tuple]:
    once, twice = [range(400, 416)], [range(400, 416), range(640, 656)]
    return [
        _train_on_garbage([*settings, "run_name=whole"], once),
        _train_on_garbage([*settings, "run_name=parts"], once, stops=(53, 70)),
        _train_on_garbage([*settings, "run_name=twice"], twice),
        _train_on_garbage([*settings, "run_name=end", "reliability.max_rollbacks=1"], twice),
    ]


@pytest.mark.slow
def test_f31_a_spike_is_rolled_back_and_its_samples_left_out(overrides, tmp_path):
    """Garbage in samples 400 to 415, steps 51 and 52, after a corpus of six words has been learnt."""
    settings = [*job.settings(overrides, tmp_path, "run", steps=90), "optim.lr=3e-3", "checkpoint.keep_last=20"]
    settings += ["reliability.spike_threshold=1", "reliability.spike_history=10", "reliability.spike_rewind=6"]
    settings += ["reliability.spike_skip=10", "stage.eval_interval=4"]
    for whole, parts, twice, end in run_distributed(_spikes, 2, settings):
        _, state, lines, message = whole
        ((start, stop),) = state["left_out"]
        assert (start, stop) == (400 - 6 * 8, 400 + 4 * 8)
        assert (state["rollbacks"], state["step"], message) == (1, 90, "")
        assert state["samples"] == 90 * 8 + stop - start
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, 91))
        assert [line["step"] for line in lines if "validation_loss" in line] == list(range(4, 90, 4))
        assert parts[:2] == whole[:2]
        again = [line["loss"] for line in parts[2] if "loss" in line]
        assert again == [line["loss"] for line in lines if "loss" in line]
        assert all(a <= at < b for (a, b), at in zip(twice[1]["left_out"], (400, 640), strict=True))
        assert (twice[1]["rollbacks"], twice[1]["step"], twice[3]) == (2, 90, "")
        assert "a spike after 1 others" in end[3]


def test_windows_are_jumped_over():
    state = TrainState(samples=100, left_out=[[140, 150], [110, 130]])
    assert next_sample(state, 10) == 100
    assert next_sample(state, 11) == 150  # from 130 on, eleven would touch the other window
    state.samples = 125
    assert next_sample(state, 8) == 130
    state.samples = 135
    assert next_sample(state, 8) == 150


def test_without_a_threshold_nothing_is_kept():
    state = TrainState(step=1)
    assert SpikeGuard(ReliabilityConfig()).check(state, 0, 99.0) is None
    assert state.recent == []


# ---- slow ranks ---------------------------------------------------------------------------------------------------


def _slow_forward(overrides: list[str]) -> dict[int, list[int]]:
    found = {}
    with job.opened(overrides) as trainer:
        rank, check = trainer.engine.dims.rank, trainer.stragglers.check
        trainer.stragglers.check = lambda step: found.update({step: check(step)})

        def dawdle(*_) -> None:
            if rank == 1 and 10 < trainer.state.step < 20:
                time.sleep(0.2)

        trainer.engine.modules[0].decoder.register_forward_pre_hook(dawdle)
        trainer.stage.fit(trainer)
    return found


def test_f22_a_slow_rank_is_named_and_no_other(overrides, tmp_path):
    settings = [*job.settings(overrides, tmp_path, "run", steps=30), "checkpoint.interval=0"]
    settings += ["reliability.straggler_interval=10", "reliability.straggler_factor=4"]
    for found in run_distributed(_slow_forward, 2, settings):
        assert found == {10: [], 20: [1], 30: []}


def test_slow_ranks_are_found_within_their_stage():
    assert slow_ranks([1.0, 1.1, 5.0, 5.1], 2, 1.5) == {}
    assert slow_ranks([1.0, 1.6, 5.0, 5.1], 2, 1.5) == {1: 1.6}
    assert slow_ranks([2.0, 2.1, 2.0, 9.0, 2.0, 2.0], 6, 1.5) == {3: 4.5}
    assert slow_ranks([0.0, 0.0], 2, 1.5) == {}


def _timed_passes() -> dict[str, int]:
    """How many events of a GPU a pass of a model in training, and one that generates a token, would record."""
    from megagpt.parallel.dims import ParallelDims

    made: list[None] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        event = SimpleNamespace(record=lambda: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: made.append(None) or event)
        model, found = torch.nn.Linear(2, 2), {}
        Stragglers(ReliabilityConfig(), ParallelDims.of(ParallelConfig(), 0, 1), [model])
        for name, training in (("training", True), ("generation", False)):
            made.clear()
            model.train(training)(torch.ones(1, 2))
            found[name] = len(made)
    return found


def test_a_generated_token_is_not_timed():
    assert run_distributed(_timed_passes, 1) == [{"training": 2, "generation": 0}]
