"""The plan of stage embed against values computed by hand, real allocations, and the recipes' clusters."""

import json

import pytest

from megagpt.config.load import load
from megagpt.config.rules import check
from megagpt.plan.devices import load_devices
from megagpt.plan.estimate import estimate_training
from megagpt.plan.job import Job
from megagpt.plan.run import estimate, fits
from megagpt.plan.search import search
from tests.plan import traced
from tests.plan.small import EMBED

A100 = load_devices()["A100-80"]
PAPER = {"350m": (12_288, 1024), "1_3b": (6_912, 2048), "6_7b": (5_896, 4096), "175b": (4_976, 12_288)}
"""Pairs of a batch and size of a vector (arXiv 2201.10005, table 1)."""
NAMES = {"ada": "350m", "babbage": "1_3b", "curie": "6_7b", "davinci": "175b"}
PRETRAINING_RATES = {"350m": 3.0e-4, "1_3b": 2.0e-4, "6_7b": 1.2e-4, "175b": 0.6e-4}


def plan(overrides: list[str], gpus: int):
    config = load(overrides)
    check(config, gpus)
    return estimate(Job(config, gpus), A100, simulated=False)


def gpus_of(size: str) -> int:
    return 128 if size == "175b" else 8


@pytest.mark.parametrize("kind", ["text", "code"])
@pytest.mark.parametrize("size", PAPER)
def test_the_papers_sizes_and_batches_fit(kind, size):
    found = plan([f"experiment=embed_{kind}_{size}"], gpus_of(size))
    config, (batch, hidden) = found.job.config, PAPER[size]
    assert found.fits, f"{found.peak_bytes / 2**30:.1f} GiB"
    assert (config.optim.global_batch_size, config.model.hidden_size) == (batch, hidden)
    assert config.optim.lr == pytest.approx(PRETRAINING_RATES[size] / 10)
    assert (config.optim.min_lr_ratio, config.embed.max_tokens, config.embed.hard_negatives) == (0.1, 512, 0)
    assert found.job.step_tokens == batch * 2 * 512
    assert found.days is None  # of pairs that are not there
    told = found.to_dict()
    assert (told["pairs_per_step"], told["texts_per_step"], told["passes"]) == (batch, 2 * batch, 2)
    assert told["gathered_vectors_gib"] == pytest.approx(2 * batch * hidden * 4 / 2**30)


@pytest.mark.parametrize("family", ["text_similarity", "text_search", "code_search"])
@pytest.mark.parametrize("name", NAMES)
def test_the_families_fit(family, name):
    found = plan([f"experiment={family}_{name}"], gpus_of(NAMES[name]))
    config = found.job.config
    negatives = family == "text_similarity"
    assert found.fits, f"{found.peak_bytes / 2**30:.1f} GiB"
    assert (config.model.name, config.model.hidden_size) == (name, PAPER[NAMES[name]][1])
    assert (config.optim.global_batch_size, config.embed.hard_negatives) == (1024, negatives)
    assert found.job.step_tokens == 1024 * (2 + negatives) * 512


def test_the_warm_up_is_a_twentieth_of_the_run():
    schedule = load(["experiment=embed_text_350m", "optim.train_tokens=200_000"]).optim.lengths
    assert (schedule.warmup_tokens, schedule.decay_tokens) == (10_000, 200_000)


ONE_PASS = ["parallel.micro_batch_size=4"]  # of 4 replicas' 4 pairs


def test_one_pass_where_a_micro_batch_holds_all_pairs_of_a_replica():
    one, two = (plan([*EMBED, f"parallel.micro_batch_size={size}"], 4) for size in (4, 2))
    assert (one.to_dict()["passes"], two.to_dict()["passes"]) == (1, 2)
    assert one.parts["first_pass"] == 0 < two.parts["first_pass"]
    assert two.parts["first_pass"] < two.parts["matmul"] + two.parts["attention"] + two.parts["memory"]
    for found in (one, two):
        assert sum(found.parts.values()) == pytest.approx(found.step_seconds)
    assert one.hfu == one.mfu and two.hfu == pytest.approx(two.mfu * 4 / 3)


@pytest.mark.parametrize(("negatives", "texts"), [(0, 32), (1, 48)])
def test_texts_vectors_and_logits_by_hand(negatives, texts):
    found = plan([*EMBED, *ONE_PASS, f"embed.hard_negatives={negatives}", "embed.dimensions=[64]"], 4)
    told = found.to_dict()
    assert told["texts_per_step"] == texts
    assert found.job.rows == 4 * (2 + negatives) and found.job.tokens == 128 * found.job.rows
    vectors, logits = texts * 512 * 4, 4 * texts * 4  # of 4 own pairs against all texts, in fp32
    assert told["gathered_vectors_gib"] * 2**30 == pytest.approx(vectors)
    assert told["logits_gib"] * 2**30 == pytest.approx(logits)
    beginnings = 2 * texts * 64 * 4
    whole = vectors / 2 + 4 * vectors + beginnings + 4 * logits
    assert told["contrast_gib"] * 2**30 == pytest.approx(whole)
    assert found.memory[0].contrast == pytest.approx(whole)  # one pass: beside all that the pass holds
    # An all-gather of the vectors and an all-reduce of their gradients, beside the all-reduce of the model's.
    alone = estimate_training(found.job, A100)
    assert found.sent["inside a node"] - alone.sent["inside a node"] == pytest.approx(3 * vectors * 3 / 4)


def test_logits_come_in_blocks():
    found = plan(["experiment=embed_text_350m", "optim.global_batch_size=1_048_576"], 8)
    assert found.to_dict()["logits_gib"] == pytest.approx(0.25)  # 2^26 in fp32, whatever the batch
    contrast = found.memory[0].contrast
    assert contrast > 1_048_576 / 8 * 2 * 1024 * 4  # a replica's gradients wait; the rest is less than a pass needs


def test_memory_between_passes_counts_once():
    small = plan(["experiment=embed_text_350m"], 8)
    large = plan(["experiment=embed_text_350m", "optim.global_batch_size=49_152"], 8)
    waiting = (49_152 - 12_288) / 8 * 2 * 1024 * 4
    assert large.peak_bytes - small.peak_bytes == pytest.approx(waiting)
    assert fits(large.job, A100)


def test_the_model_has_a_temperature_and_no_output_projection():
    model = plan([*EMBED, *ONE_PASS], 4).job.config.model
    layer = 4 * (512 * 512 + 512) + 8 * 512 * 512 + 5 * 512 + 4 * 512
    by_hand = 4 * layer + 4096 * 512 + 512 * 512 + 2 * 512 + 1  # vocabulary padded to 4096, positions, norm
    assert plan([*EMBED, *ONE_PASS], 4).to_dict()["parameters_per_stage"] == [by_hand]
    fixed = plan([*EMBED, *ONE_PASS, "embed.learn_temperature=false"], 4)
    assert fixed.to_dict()["parameters_per_stage"] == [by_hand - 1]
    weights = 4 * (4 * 512 * 512 + 8 * 512 * 512)
    keys = 2 * 128 + 2 * 128  # two dense layers and two banded ones, whose band is longer than a text
    assert fixed.to_dict()["flops_per_token"] == 6 * weights + 12 * keys * 512
    assert model.output_size == 0


def test_epochs_are_counted_in_pairs(tmp_path):
    records = [{"query": f"q {number}", "positive": f"p {number}"} for number in range(64)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pairs = [f"data.pairs=[{tmp_path}/a.jsonl]", "data.split=[1,0,0]"]
    found = plan([*EMBED, *ONE_PASS, *pairs], 4)
    assert found.days == pytest.approx(64 / 16 * found.step_seconds / 86400)
    tokens = plan([*EMBED, *ONE_PASS, "optim.train_epochs=null", f"optim.train_tokens={10 * 16 * 2 * 128}"], 4)
    assert tokens.days == pytest.approx(10 * tokens.step_seconds / 86400)


def test_search_finds_layouts_whose_micro_batches_divide_an_odd_batch():
    found = search(load(["experiment=embed_text_6_7b"]), 8, A100, count=20)
    assert len(found) == 20
    assert all(layout.plan.fits and layout.plan.parts["contrast"] > 0 for layout in found)
    assert 11 in {layout.plan.job.config.parallel.micro_batch_size for layout in found}


@pytest.mark.parametrize(
    ("pairs", "kinds", "width", "dimensions"), [(512, 2, 1024, ()), (2048, 3, 64, (16, 32)), (256, 2, 4096, ())]
)
def test_the_comparison_allocates_what_is_planned(pairs, kinds, width, dimensions):
    """On one replica, which has nothing to gather: the vectors with gradients, and the logits."""
    overrides = [*EMBED, f"model.hidden_size={width}", f"optim.global_batch_size={pairs}"]
    overrides += [f"embed.hard_negatives={kinds - 2}", f"embed.dimensions={list(dimensions)}".replace(" ", "")]
    planned = plan([*overrides, "parallel.micro_batch_size=1"], 1).to_dict()["contrast_gib"] * 2**30
    vectors = 2 * 4 * pairs * kinds * width  # by micro-batch, and put in order
    allocated = traced.allocated_by_comparison(pairs, kinds, width, dimensions)
    assert allocated + vectors == pytest.approx(planned, rel=0.15)
