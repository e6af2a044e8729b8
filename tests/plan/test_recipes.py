"""Every recipe passes the rules and fits on every cluster that is offered for it."""

import json
import re
from pathlib import Path

import pytest

from megagpt.config.load import groups, load
from megagpt.config.rules import check
from megagpt.plan.devices import load_devices
from megagpt.plan.job import Job
from megagpt.plan.parameters import total_parameters
from megagpt.plan.run import estimate

SMALL = ["125m", "350m", "760m", "1_3b", "2_7b"]
DEVICES = {"80gb": ["A100-80", "H100-80"], "141gb": ["H200-141"]}


def recipes() -> list[tuple[str, str, int, str]]:
    """Size, cluster, GPUs and device."""
    found = []
    for cluster in groups()["cluster"]:
        size, nodes, memory = re.fullmatch(r"(?:(\d+.*b)_)?(\d+)x8x(\d+gb)", cluster).groups()
        for name in [size] if size else SMALL:
            found += [(name, cluster, 8 * int(nodes), device) for device in DEVICES[memory]]
    return found


@pytest.mark.parametrize(("size", "cluster", "gpus", "device"), recipes())
def test_fits(size, cluster, gpus, device):
    config = load([f"experiment=pretrain_{size}", f"cluster={cluster}"])
    check(config, gpus)
    plan = estimate(Job(config, gpus), load_devices()[device], simulated=False)
    assert plan.fits, f"{plan.peak_bytes / 2**30:.1f} GiB"


def plan(overrides: list[str], gpus: int):
    config = load(overrides)
    check(config, gpus)
    return estimate(Job(config, gpus), load_devices()["A100-80"], simulated=False)


@pytest.mark.parametrize(("size", "gpus"), [("6_7b", 8), ("175b", 64)])
def test_nine_answers_fit(size, gpus):
    recipe = [f"experiment=reward_{size}"]
    found = plan(recipe, gpus)
    assert found.job.step_tokens == 9 * 64 * 2048
    assert found.days is None
    assert (found.fits, plan([*recipe, "parallel.recompute=none"], gpus).fits) == (True, False)


@pytest.mark.parametrize("size", ["125m", "1_3b"])
def test_nine_answers_of_a_small_model_fit_without_recomputation(size):
    found = plan([f"experiment=reward_{size}"], 8)
    assert found.job.step_tokens == 9 * 64 * 2048
    assert (found.fits, found.job.config.parallel.recompute) == (True, "none")


SIX_BILLION = "ppo.scoring_model={num_layers: 32, hidden_size: 4096, num_attention_heads: 32, vocab_size: 50260}"


@pytest.mark.parametrize(
    ("size", "gpus", "reward", "more"),
    [
        ("125m", 8, "125m", []),
        ("1_3b", 8, "1_3b", []),
        ("1_3b", 8, "6_7b", ["ppo.reward_model=runs/reward_6_7b", SIX_BILLION]),
        ("6_7b", 8, "6_7b", []),
        ("175b", 128, "6_7b", []),
    ],
)
def test_four_models_fit(size, gpus, reward, more):
    recipe = [f"experiment=ppo_{size}", "data.corpora=[{path: text}]", *more]
    found = plan(recipe, gpus)
    assert found.job.config.ppo.reward_model == f"runs/reward_{reward}"
    assert found.fits, found.ranks
    sizes = found.to_dict()["models_parameters"]
    own, scoring = (sizes["policy"], sizes["reference"]), (sizes["critic"], sizes["reward"])
    assert own[0] == own[1] == total_parameters(load([f"experiment=sft_{size}"]).model)
    assert scoring[0] == scoring[1] == total_parameters(load([f"experiment=reward_{reward}"]).model)
    ppo = found.job.config.ppo
    assert (ppo.episodes, ppo.rollout_batch_size, ppo.kl_coefficient) == (256_000, 512, 0.02)
    assert found.models["policy"].config.optim.global_batch_size == 64 * (1 + 8)
    assert found.days == pytest.approx(256_000 / 64 * found.step_seconds / 86400)


def test_what_ppo_does_not_need_is_not_counted():
    recipe = ["experiment=ppo_6_7b", "data.corpora=[{path: text}]"]
    whole = plan(recipe, 8)
    held = whole.ranks[0][1]
    assert held.reference > 0 and held.reward > 0 and held.mean > 0 and held.copy == 0
    offloaded = plan([*recipe, "ppo.offload=true"], 8).ranks[0][1]
    assert offloaded.reference == offloaded.reward == offloaded.mean == 0
    assert offloaded.scoring >= held.scoring + held.reference
    checked = plan([*recipe, "ppo.reward=checker"], 8)
    assert checked.ranks[0][1].reward == 0
    assert checked.parts["scoring"] < whole.parts["scoring"]
    alone = plan([*recipe, "ppo.ptx_coefficient=0"], 8)
    assert alone.parts["matmul"] == pytest.approx(whole.parts["matmul"] / 9, rel=0.01)
    copied = plan([*recipe, "ppo.rollout_parallel.tensor_parallel_size=8"], 8)
    assert copied.ranks[0][1].copy == pytest.approx(held.reference / 2, rel=0.01)  # of 8 tensor-parallel ranks, not 4
    assert copied.ranks[0][1].total == pytest.approx(
        held.total + copied.ranks[0][1].copy + copied.ranks[0][1].generation - held.generation
    )


def test_epochs_are_counted_where_the_files_are_there(tmp_path):
    records = [
        {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}]} for n in range(64)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = ["experiment=sft_1_3b", "data.split=[1,0,0]"]
    assert plan(recipe, 8).days is None
    found = plan([*recipe, f"data.conversations=[{tmp_path}/a.jsonl]"], 8)
    assert found.days == pytest.approx(16 * 64 / 32 * found.step_seconds / 86400)


@pytest.mark.parametrize(
    "name", ["code_125m", "code_350m", "code_1_3b", "code_6_7b", "code_175b", "edit_125m", "edit_1_3b"]
)
def test_code_and_edit_fit(name):
    found = plan([f"experiment={name}"], 1024 if name == "code_175b" else 8)
    assert found.fits, f"{found.peak_bytes / 2**30:.1f} GiB"


@pytest.mark.parametrize(("size", "gpus"), [("125m", 8), ("1_3b", 8), ("6_7b", 8), ("175b", 64)])
def test_fine_tuning_fits(size, gpus):
    config = load([f"experiment=sft_{size}"])
    check(config, gpus)
    assert (config.model.hidden_dropout, config.optim.train_epochs, config.data.packing) == (0.2, 16, False)
    assert estimate(Job(config, gpus), load_devices()["A100-80"], simulated=False).fits


def test_what_is_asked_for_by_name_wins_over_the_cluster():
    config = load(["experiment=pretrain_175b", "parallel=3d", "parallel.micro_batch_size=3"])
    assert (config.parallel.tensor_parallel_size, config.parallel.micro_batch_size) == (2, 3)


def test_175b_is_as_published_on_1024_gpus():
    parallel = load(["experiment=pretrain_175b"]).parallel
    assert (parallel.tensor_parallel_size, parallel.pipeline_parallel_size) == (8, 16)
    assert parallel.virtual_pipeline_size > 1
    assert parallel.sequence_parallel
    assert (parallel.recompute, parallel.zero_stage) == ("selective", 1)


@pytest.mark.parametrize(("size", "gpus"), [("350m", 8), ("1_3b", 8), ("6_7b", 8), ("175b", 128)])
def test_the_page_has_what_the_plan_says_of_embeddings(size, gpus):
    page = (Path(__file__).parent.parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `embed_text_{size}` |"))
    found = estimate(Job(load([f"experiment=embed_text_{size}"]), gpus), load_devices()["H100-80"])
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-2:] == [f"{found.peak_bytes / 2**30:.1f}", f"{found.step_seconds:.1f}"]
    assert cells[3] == f"{found.job.config.optim.global_batch_size:,}"
