"""The YAML files that ship: each composes and passes the rules, and the models are as large as their names say."""

import dataclasses
import math
import re
from functools import cache

import pytest

from megagpt.config.alignment_rules import PPO_MODELS
from megagpt.config.groups import CORPUS_DIR
from megagpt.config.load import CONFIG_DIR, groups
from megagpt.config.load import load as compose
from megagpt.config.rules import check
from megagpt.config.schema import Config, ModelConfig, Schedule

EVERY = [(group, option) for group, options in groups().items() for option in options]
GPT3 = [option for option in groups()["model"] if re.fullmatch(r"gpt3_.*[mb]", option)]


TALKS = ["checkpoint.load=runs/other", "data.conversations=[a.jsonl]"]
STARTS = {
    "code": ["checkpoint.load=runs/other"],
    "edit": ["stage=edit", *TALKS],
    "sft": ["stage=sft", *TALKS],
    "embed": ["stage=embed", "checkpoint.load=runs/other", "data.pairs=[a.jsonl]", "optim.ramp_start=null"],
    "reward": ["stage=reward", "checkpoint.load=runs/other", "data.rankings=[a.jsonl]"],
    "ppo": ["stage=ppo", *TALKS, "ppo.reward_model=runs/reward", "optim.ramp_start=null", "optim.ramp_tokens=0"],
}
"""What the options of later stages need beside them."""


@cache
def load(*overrides: str) -> Config:
    return compose(list(overrides))


@pytest.mark.parametrize(("group", "option"), EVERY, ids=[f"{group}/{option}" for group, option in EVERY])
def test_every_file_composes_and_passes_the_rules(group, option):
    size = re.match(r"(\d+.*b)_\d+x", option) if group == "cluster" else None
    large = ["model=gpt3_175b", "optim=gpt3_175b", "optim.ramp_start=64"] if "vpp6" in option else []
    stage = option.split("_")[0] if group in ("stage", "data", "optim") else ""
    start = [text for text in STARTS.get(stage, []) if not text.startswith(f"{group}=")]
    config = load(f"{group}={option}", *([f"experiment=pretrain_{size[1]}"] if size else large), *start)
    layouts = [config.parallel, *(config.ppo.layout(name, config.parallel) for name in PPO_MODELS)]
    check(config, math.lcm(*(own.tensor_parallel_size * own.pipeline_parallel_size for own in layouts)))


@pytest.mark.parametrize("option", groups()["parallel"])
def test_every_layout_runs_on_the_ranks_its_comment_names(option):
    comment = (CONFIG_DIR / "parallel" / f"{option}.yaml").read_text()
    multiple = re.search(r"Ranks: a multiple of (\d+)", comment)
    ranks = int(multiple[1]) if multiple else 1
    small = ["experiment=demo", "optim=demo"] if ranks <= 8 else ["experiment=pretrain_175b", "optim.ramp_start=64"]
    check(load(*small, f"parallel={option}"), ranks)


def test_no_file_lies_outside_a_group():
    named = {CONFIG_DIR / group / f"{option}.yaml" for group, option in EVERY} | {CONFIG_DIR / "config.yaml"}
    assert set(CONFIG_DIR.rglob("*.yaml")) == named | set(CORPUS_DIR.glob("*.yaml"))


def parameters(model: ModelConfig) -> int:
    """Weights and biases of a GPT-3-shaped model: learned positions, tied embeddings, two norms a layer."""
    assert (model.position_embedding, model.activation, model.tie_embeddings) == ("learned", "gelu", True)
    hidden, ffn = model.hidden_size, model.ffn_size
    norms, attention = 4 * hidden, 4 * (hidden * hidden + hidden)
    layer = norms + attention + 2 * hidden * ffn + ffn + hidden
    return model.num_layers * layer + (model.vocab_size + model.sequence_length) * hidden + 2 * hidden


@pytest.mark.parametrize("option", GPT3)
def test_models_are_as_large_as_their_names(option):
    published = option.removeprefix("gpt3_").replace("_", ".")
    size = float(published[:-1]) * {"m": 1e6, "b": 1e9}[published[-1]]
    assert parameters(load(f"model={option}").model) == pytest.approx(size, rel=0.03)


def test_there_are_eight_sizes_each_with_model_schedule_and_experiment():
    assert len(GPT3) == 8
    for option in GPT3:
        config = load(f"experiment={option.replace('gpt3', 'pretrain')}")
        assert config.run_name.removeprefix("pretrain") == config.model.name.removeprefix("gpt3")
        assert config.model == load(f"model={option}").model
        published = load(f"optim={option}").optim
        assert dataclasses.replace(config.optim, ramp_start=published.ramp_start) == published


@pytest.mark.parametrize("size", ["125m", "350m", "1_3b", "6_7b", "13b", "175b"])
def test_code_is_the_model_with_codex_schedule(size):
    config, base = load(f"experiment=code_{size}"), load(f"experiment=pretrain_{size}")
    assert (config.stage.name, config.checkpoint.load) == ("code", base.run_dir)
    assert dataclasses.replace(config.model, vocab_size=base.model.vocab_size) == base.model
    assert config.model.vocab_size > base.model.vocab_size
    step = config.optim.global_batch_size * config.model.sequence_length
    lengths = {"warmup_tokens": 175 * step, "decay_tokens": 10**11, "train_tokens": 10**11}
    published = dataclasses.replace(base.optim.published, **lengths)
    assert config.optim == dataclasses.replace(base.optim, train_tokens=10**11, published=published, ramp_start=None)
    assert config.optim.lengths == published
    assert (config.data.fim_rate, config.data.fim_spm_rate) == (0.5, 0.5)


def test_gpt3_alternates_dense_and_banded():
    for option in GPT3:
        model = load(f"model={option}").model
        windows = [model.window(layer) for layer in range(model.num_layers)]
        assert windows == [None, model.attention_window] * (model.num_layers // 2)


def test_aliases_are_the_models_they_stand_for():
    for alias, option in {"ada": "350m", "babbage": "1_3b", "curie": "6_7b", "davinci": "175b"}.items():
        given, meant = load(f"model={alias}").model, load(f"model=gpt3_{option}").model
        assert given.name == alias
        assert parameters(given) == parameters(meant)


def test_larger_models_have_larger_batches_and_smaller_rates():
    configs = sorted(
        (load(f"optim={option}", f"model={option}") for option in GPT3), key=lambda config: parameters(config.model)
    )
    rates = [config.optim.lr for config in configs]
    batches = [config.optim.global_batch_size for config in configs]
    ramps = [config.optim.lengths.ramp_tokens for config in configs]
    assert rates == sorted(set(rates), reverse=True)
    assert batches == sorted(batches)
    assert ramps == sorted(ramps)
    assert (min(ramps), max(ramps)) == (4e9, 12e9)


PUBLISHED_RAMPS = dict(zip(GPT3, map(int, (4e9, 8e9, 12e9, 6e9, 6e9, 4e9, 8e9, 4e9)), strict=True))


@pytest.mark.parametrize("option", GPT3)
def test_published_recipes_keep_their_numbers(option):
    optim = load(f"experiment={option.replace('gpt3', 'pretrain')}").optim
    ramp = PUBLISHED_RAMPS[option]
    assert optim.lengths == Schedule(300 * 10**9, 375 * 10**6, 260 * 10**9, ramp)
    third = load(f"experiment={option.replace('gpt3', 'pretrain')}", "optim.train_tokens=3e9").optim
    assert third.lengths == Schedule(3 * 10**9, 3_750_000, 2_600_000_000, ramp // 100)


def test_a_model_file_holds_only_what_differs():
    for option in groups()["model"]:
        lines = (CONFIG_DIR / "model" / f"{option}.yaml").read_text().splitlines()
        assert sum(not line.startswith(("#", "defaults:", "name:")) for line in lines) <= 12
