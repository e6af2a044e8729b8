"""Stage embed: what is learnt, alike in every layout; dropout in both passes; resuming; what is refused."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dist import run_distributed

from megagpt.config.load import load
from tests.layouts import ON_TWO_RANKS, cases, tried

BATCH, STEPS, STOP = 16, 5, 3
FOUR = {
    "tensor_data": ["parallel.tensor_parallel_size=2"],
    "pipeline_data": ["parallel.pipeline_parallel_size=2"],
}
WORDS = ["to", "be", "or", "not", "that", "is"]


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Queries and documents about the same three words of a hundred; some share a document or have negatives."""
    rng, records = random.Random(seed), []
    for number in range(count):
        words = rng.choices(WORDS, k=3)
        query, positive = (" ".join(rng.sample(words, 3) + rng.choices(WORDS, k=rng.randint(0, 6))) for _ in range(2))
        record = {"query": f"{number} {query}", "positive": f"{positive} {number}", "document": f"file {number // 2}"}
        if number % 3 == 0:
            record["negatives"] = [f"not {number} {n} {positive}" for n in range(number % 2 + 1)]
        records.append(record)
    return records


def _run(overrides: list[str]) -> dict:
    """Train as told; returns the curve, where the run began, its evaluation, and the model's shards."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megagpt.config.rules import check
    from megagpt.stages.session import open_run

    config = load(overrides)
    check(config, dist.get_world_size())
    with open_run(config) as trainer:
        begun = trainer.state.step
        trainer.stage.fit(trainer)
        result = {"begun": begun, "evaluation": trainer.stage.evaluate(trainer.state)}
    shards = [shard for shard in trainer.engine.shards(for_saving=False) if shard.name.startswith("model/")]
    result["shards"] = [replace(shard, data=shard.data.detach().clone().numpy()) for shard in shards]
    parallel_state.destroy_model_parallel()
    lines = map(json.loads, (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines())
    names = ("loss", "grad_norm", "batch_accuracy", "positive_cosine", "temperature")
    return result | {"curve": [[line[name] for name in names] for line in lines if "loss" in line]}


def _base(overrides: list[str]) -> None:
    from megatron.core import parallel_state

    from megagpt.stages.session import run_stage

    run_stage(load(overrides))
    parallel_state.destroy_model_parallel()


def _run_in_turn(runs: dict[str, list[str]]) -> dict[str, dict]:
    return {name: _run([*overrides, f"run_name={name}"]) for name, overrides in runs.items()}


class _Recorder:
    """An objective that keeps the vectors whose loss is taken."""

    def __init__(self, objective) -> None:
        self.objective, self.forward, self.metric_names = objective, objective.forward, objective.metric_names
        self.vectors: list[torch.Tensor] = []

    def loss(self, output, batch):
        self.vectors.append(output.detach().clone())
        return self.objective.loss(output, batch)


def _two_passes(runs: dict[str, list[str]]) -> dict[str, list[torch.Tensor]]:
    """Vectors of a step's first and second pass, on ranks that have them."""
    from megatron.core import parallel_state

    from megagpt.stages.session import open_run

    found = {}
    for name, overrides in runs.items():
        with open_run(load([*overrides, f"run_name=passes_{name}"])) as trainer:
            stage, engine, dims = trainer.stage, trainer.engine, trainer.engine.dims
            engine.objective = recorder = _Recorder(stage.objective)
            batches = list(stage.loader.micro_batches(0, BATCH, dims.data_rank, dims.data_size))
            before = engine.random_state()
            first = engine.outputs(iter(batches), len(batches), training=True)
            engine.set_random_state(before)
            still = engine.outputs(iter(batches), len(batches))
            engine.set_random_state(before)
            stage.train_step(iter(batches), trainer.begin_step())
            found[name] = [torch.stack(each) if each else None for each in (first, recorder.vectors, still)]
        parallel_state.destroy_model_parallel()
    return found


DROPOUT = ["model.hidden_dropout=0.1", "model.attention_dropout=0.1"]


def _one_rank(settings: list[str]) -> dict[str, dict]:
    single = [*settings, f"parallel.micro_batch_size={BATCH}"]
    found = _run_in_turn({"whole": settings, "single": single, "dropout": [*settings, *DROPOUT]})
    runs, middle = Path(load(settings).runs_dir), Path("checkpoints", f"step_{STOP:08}")
    shutil.copytree(runs / "dropout" / middle, runs / "resumed" / middle)
    return found | _run_in_turn({"resumed": [*settings, *DROPOUT]})


def _several(layouts: dict[str, list[str]]) -> dict:
    return {
        "runs": _run_in_turn(layouts),
        "passes": _two_passes({name: [*overrides, *DROPOUT] for name, overrides in layouts.items()}),
    }


@pytest.fixture(scope="module")
def settings(overrides, tmp_path_factory) -> list[str]:
    """Overrides of a run that learns from pairs; the run that it starts from is there."""
    folder = tmp_path_factory.mktemp("embed")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pairs(120)))
    common = [*overrides, f"runs_dir={folder}", "optim.ramp_start=null", "optim.ramp_tokens=0"]
    common += [f"optim.global_batch_size={BATCH}", "optim.warmup_tokens=0", "model.tie_embeddings=false"]
    embed = [
        *common,
        "stage=embed",
        f"checkpoint.load={folder}/base",
        "model.sequence_length=24",
        "model.hidden_dropout=0",
        "model.attention_dropout=0",
        f"data.pairs=[{folder}/pairs.jsonl]",
        "data.split=[0.8,0.2,0]",
        "embed.hard_negatives=2",
        "embed.dimensions=[16]",
        "embed.false_negative_margin=0.5",
        "optim.train_epochs=1",
        "parallel.micro_batch_size=2",
        f"checkpoint.interval={STOP}",
        "checkpoint.keep_last=9",
    ]
    base = [*common, "run_name=base", "model.sequence_length=24", f"optim.train_tokens={4 * BATCH * 24}"]
    run_distributed(_base, 1, base)
    return embed


@pytest.fixture(scope="module")
def one(settings) -> dict[str, dict]:
    """Results on one rank."""
    return run_distributed(_one_rank, 1, settings)[0]


@pytest.fixture(scope="module")
def two(settings, one, thorough) -> list[dict]:
    """Results of both ranks in every layout of two."""
    layouts = {name: [*settings, *layout] for name, layout in tried(ON_TWO_RANKS, thorough).items()}
    return run_distributed(_several, 2, layouts, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("layout", cases(ON_TWO_RANKS))
def test_every_layout_learns_as_one_rank(one, two, layout):
    expected = one["whole"]
    assert len(expected["curve"]) == STEPS
    for rank in two:
        torch.testing.assert_close(rank["runs"][layout]["curve"], expected["curve"], rtol=1e-5, atol=1e-5)
        measured = rank["runs"][layout]["evaluation"]
        assert measured == pytest.approx(expected["evaluation"], rel=1e-4)


@pytest.mark.slow
def test_layouts_of_four_learn_as_one_rank(one, settings):
    runs = {name: [*settings, *layout] for name, layout in FOUR.items()}
    for rank in run_distributed(_run_in_turn, 4, runs, timeout=600):
        for name in FOUR:
            torch.testing.assert_close(rank[name]["curve"], one["whole"]["curve"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", cases(ON_TWO_RANKS))
def test_dropout_drops_the_same_in_both_passes(two, layout):
    seen = 0
    for rank in two:
        first, second, still = rank["passes"][layout]
        assert not torch.allclose(first, still, atol=1e-3)  # there is dropout
        if second is not None:
            assert torch.equal(first, second)
            seen += 1
    assert seen


def test_one_pass_and_two_passes_learn_the_same(one):
    torch.testing.assert_close(one["single"]["curve"], one["whole"]["curve"], rtol=1e-5, atol=1e-5)


def test_resume_is_bit_exact_with_dropout(one):
    whole, resumed = one["dropout"], one["resumed"]
    assert (whole["begun"], resumed["begun"]) == (0, STOP)
    assert resumed["curve"] == whole["curve"][STOP:]
    for a, b in zip(whole["shards"], resumed["shards"], strict=True):
        assert np.array_equal(a.data, b.data), a.name


def test_the_temperature_is_learnt_and_saved(one):
    curve = one["whole"]["curve"]
    assert curve[0][4] == pytest.approx(0.07, rel=1e-5)
    assert abs(curve[-1][4] - 0.07) > 1e-4
    (scale,) = [shard for shard in one["whole"]["shards"] if shard.name == "model/embedding_head.scale"]
    assert scale.data.shape == (1,)
