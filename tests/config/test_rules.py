"""Every rule is broken once, by an example found in a table, and says which fields and what to do."""

import copy
import dataclasses
import inspect
import re
from functools import cache, reduce
from operator import getitem
from typing import get_type_hints

import pytest
import yaml

from megagpt.config import alignment_rules, layout_rules, rules
from megagpt.config.bounds import BELOW_ONE, FRACTION, NON_NEGATIVE, POSITIVE, ranges_of
from megagpt.config.explain import fields
from megagpt.config.load import from_dict, groups, load, to_dict
from megagpt.config.schema import Config
from megagpt.errors import ConfigError

TENSOR, STAGES = "parallel.tensor_parallel_size", "parallel.pipeline_parallel_size"

# rule, ranks, overrides of the demo, and what the message names: fields with their values, then the fix
PPO = [
    *("stage=ppo", "checkpoint.load=runs/sft", "data.conversations=[a.jsonl]", "ppo.reward_model=runs/reward"),
    *("ppo.max_prompt_tokens=32", "ppo.max_new_tokens=32", "ppo.rollout_batch_size=32"),
]
BROKEN = [
    ("run_name", 1, ["run_name=../x"], ["run_name ('../x')", "runs_dir"]),
    ("run_name", 1, ["run_name=''"], ["run_name ('')"]),
    ("run_name", 1, ["run_name=/tmp/x"], ["run_name ('/tmp/x')"]),
    ("run_name", 1, ["run_name=.."], ["run_name ('..')"]),
    (
        *("heads_divide_hidden_size", 1, ["model.num_attention_heads=3"]),
        ["model.hidden_size (256)", "model.num_attention_heads (3)", "255 or 258"],
    ),
    (
        *("query_groups_divide_heads", 1, ["model.num_query_groups=3"]),
        ["model.num_attention_heads (4)", "model.num_query_groups (3)", "3 or 6"],
    ),
    (
        *("rope_pairs_dimensions", 1, ["model.position_embedding=rope", "model.hidden_size=12"]),
        ["model.position_embedding (rope)", "model.hidden_size (12)", "model.num_attention_heads (4)"],
    ),
    ("attention_pattern", 1, ["model.attention_pattern=[]"], ["model.attention_pattern", "[dense,banded]"]),
    (
        *("tensor_parallel_divides", 8, [f"{TENSOR}=8", "optim.global_batch_size=8"]),
        ["model.num_attention_heads (4)", f"{TENSOR} (8)"],
    ),
    (
        *("tensor_parallel_divides", 2, [f"{TENSOR}=2", "model.num_query_groups=1"]),
        ["model.num_query_groups (1)", f"{TENSOR} (2)"],
    ),
    (
        *("tensor_parallel_divides", 2, [f"{TENSOR}=2", "model.ffn_hidden_size=33"]),
        ["model.ffn_hidden_size (33)", f"{TENSOR} (2)", "32 or 34"],
    ),
    (
        *("tensor_parallel_divides", 3, [f"{TENSOR}=3", "model.num_attention_heads=6", "model.hidden_size=384"]),
        ["model.vocab_size (4096)", f"{TENSOR} (3)", "power of two"],
    ),
    (
        *("sequence_parallel", 1, ["parallel.sequence_parallel=true"]),
        ["parallel.sequence_parallel (true)", f"{TENSOR} is 1", "sequence_parallel=false"],
    ),
    (
        *("sequence_parallel", 2, ["parallel=tensor_sequence", "model.sequence_length=255"]),
        ["model.sequence_length (255)", f"{TENSOR} (2)", "254 or 256"],
    ),
    ("world_size_fits", 1, ["parallel=tensor"], ["processes (1)", f"{TENSOR} (2)", f"{STAGES} (1)", "start 2"]),
    ("world_size_fits", 6, ["parallel=3d"], ["processes (6)", f"{TENSOR} (2)", f"{STAGES} (2)", "start 4"]),
    (
        *("pipeline_divides_layers", 3, [f"{STAGES}=3", "optim.global_batch_size=24"]),
        ["model.num_layers (4)", f"{STAGES} (3)", "3 or 6"],
    ),
    (
        *("pipeline_divides_layers", 2, ["parallel=interleaved", "model.num_layers=6"]),
        ["model.num_layers (6)", f"{STAGES} (2)", "parallel.virtual_pipeline_size (2)", "4 or 8"],
    ),
    (
        *("pipeline_divides_layers", 1, ["parallel.virtual_pipeline_size=2"]),
        ["parallel.virtual_pipeline_size (2)", f"{STAGES} is 1"],
    ),
    (
        *("batch_divides", 3, ["parallel.micro_batch_size=8"]),
        ["optim.global_batch_size (16)", "parallel.micro_batch_size (8) x 3 data-parallel ranks = 24", "set it to 24"],
    ),
    (
        *("batch_divides", 2, ["optim.ramp_start=9", "optim.ramp_tokens=100", "parallel.micro_batch_size=2"]),
        ["optim.ramp_start (9)", "parallel.micro_batch_size (2) x 2 data-parallel ranks", "8 or 12"],
    ),
    (
        *("batch_divides", 2, ["parallel=interleaved", "optim.global_batch_size=3", "parallel.micro_batch_size=1"]),
        ["optim.global_batch_size (3)", "parallel.micro_batch_size (1)", f"{STAGES} (2)", "2 or 4"],
    ),
    (
        *("enough_micro_batches", 2, ["parallel=pipeline", "parallel.micro_batch_size=16"]),
        ["optim.global_batch_size (16)", "parallel.micro_batch_size (16)", f"{STAGES} (2)", "32 or more"],
    ),
    (
        *("zero_stage", 2, ["parallel=pipeline", "parallel.zero_stage=3"]),
        ["parallel.zero_stage (3)", f"{STAGES} (2)", "zero_stage=1", "the distributed optimizer"],
    ),
    (
        *("zero_stage", 1, ["parallel.zero_stage=2"]),
        ["parallel.zero_stage (2)", "the engine is megatron", "parallel.engine=deepspeed", "zero_stage=1"],
    ),
    (
        *("zero_stage", 2, ["parallel=pipeline", "parallel.engine=deepspeed", "parallel.zero_stage=1"]),
        ["parallel.engine (deepspeed)", f"{STAGES} (2)", "the distributed optimizer", "pipeline_parallel_size=1"],
    ),
    (
        *("zero_stage", 1, ["parallel.engine=deepspeed", "parallel.zero_stage=0"]),
        ["parallel.zero_stage (0)", "parallel.engine (deepspeed)", "parallel.engine=megatron"],
    ),
    (
        *("fused_optimizer", 1, ["parallel=zero2", "optim.fused=apex"]),
        ["optim.fused (apex)", "parallel.engine (deepspeed)", "optim.fused=torch"],
    ),
    (
        *("offload", 1, ["parallel.offload_optimizer=cpu"]),
        ["parallel.offload_optimizer (cpu)", "parallel.engine=deepspeed", "the engine is megatron"],
    ),
    (
        *("offload", 1, ["parallel=zero2", "parallel.offload_parameters=cpu"]),
        ["parallel.offload_parameters (cpu)", "parallel.zero_stage=3", "the stage is 2"],
    ),
    (
        *("offload", 1, ["parallel=zero2", "parallel.offload_optimizer=nvme", "parallel.offload_path=disk"]),
        ["parallel.offload_optimizer (nvme)", "parallel.zero_stage=3", "the stage is 2"],
    ),
    (
        *("offload", 1, ["parallel=zero3", "parallel.offload_parameters=nvme"]),
        ["parallel.offload_parameters (nvme)", "parallel.offload_path", "null"],
    ),
    ("batch_ramp", 1, ["optim.ramp_start=8"], ["optim.ramp_start (8)", "optim.ramp_tokens (0)", "ramp_start=null"]),
    ("batch_ramp", 1, ["optim.ramp_tokens=8"], ["optim.ramp_start (null)", "optim.ramp_tokens (8)"]),
    (
        *("batch_ramp", 1, ["optim.ramp_start=32", "optim.ramp_tokens=100"]),
        ["optim.ramp_start (32)", "optim.global_batch_size (16)"],
    ),
    (
        *("warmup_before_decay", 1, ["optim.warmup_tokens=200", "optim.decay_tokens=100"]),
        ["optim.warmup_tokens (200)", "optim.decay_tokens (100)", "raise the second"],
    ),
    (
        *("kept_checkpoints_exist", 1, ["checkpoint.keep_every=150", "checkpoint.interval=100"]),
        ["checkpoint.keep_every (150)", "checkpoint.interval (100)", "100 or 200"],
    ),
    (
        *("best_is_measured", 1, ["checkpoint.best_metric=validation_loss", "stage.eval_interval=0"]),
        ["checkpoint.best_metric (validation_loss)", "stage.eval_interval is 0", "best_metric=null"],
    ),
    (
        *("rewards_are_of_responses", 1, ["stage.reward_model=runs/reward"]),
        ["stage.reward_model (runs/reward)", "stage.name is pretrain", "ppo.reward_model"],
    ),
    (
        *("rewards_are_of_responses", 1, ["stage=sft", "stage.reward_model=runs/reward", "parallel=zero3"]),
        ["stage.reward_model (runs/reward)", "parallel.zero_stage (3)", "1 or 2"],
    ),
    (
        *("rewards_are_of_responses", 1, ["stage=sft", "stage.reward_model=runs/reward", "stage.eval_interval=0"]),
        ["stage.reward_model (runs/reward)", "stage.eval_interval is 0"],
    ),
    (
        *("spikes_have_checkpoints", 1, ["reliability.spike_threshold=2", "checkpoint.interval=50"]),
        ["reliability.spike_rewind (100)", "50 steps", "checkpoint.keep_last (2)", "checkpoint.interval (50)"],
    ),
    (
        *("spikes_have_checkpoints", 1),
        ["reliability.spike_threshold=2", "checkpoint.best_metric=validation_loss", "stage.eval_interval=20"],
        ["reliability.spike_rewind (100)", "20 steps", "stage.eval_interval (20)"],
    ),
    (
        *("spike_is_left_out", 1, ["reliability.spike_skip=100"]),
        ["reliability.spike_skip (100)", "reliability.spike_rewind (100)", "101 or more"],
    ),
    ("stage_starts_from_a_model", 1, ["stage=code"], ["stage.name (code)", "checkpoint.load", "stage=pretrain"]),
    ("epochs_need_conversations", 1, ["optim.train_epochs=2"], ["optim.train_epochs (2)", "stage.name is pretrain"]),
    (
        "edits_are_for_conversations",
        1,
        ["stage.held_out_edits=a.jsonl"],
        ["stage.held_out_edits (a.jsonl)", "stage.name is pretrain"],
    ),
    ("data_is_named", 1, ["stage=sft"], ["data.conversations", "stage.name is sft", ".jsonl"]),
    ("data_is_named", 1, ["data.tokenizer=''"], ["data.tokenizer", "`megagpt data tokenizer`", "make train"]),
    ("data_is_named", 1, ["data.corpora=[]"], ["data.corpora", "`megagpt data preprocess`", "make train"]),
    ("data_is_named", 1, ["data.corpora=[{path: ''}]"], ["data.corpora[0].path", "`megagpt data preprocess`"]),
    (
        "data_is_named",
        1,
        ["data.corpora=[{path: a, weight: 0}]"],
        ["data.corpora[0].weight (0.0)", "'a'", "off the list"],
    ),
    ("data_is_named", 1, ["stage=reward"], ["data.rankings", "stage.name is reward", ".jsonl"]),
    ("only_rewards_are_scalars", 1, ["model.head=scalar"], ["model.head (scalar)", "stage.name (pretrain)", "tokens"]),
    (
        "episodes_have_a_reward",
        1,
        [*PPO, "ppo.reward_model=null"],
        ["ppo.reward (model)", "ppo.reward_model", "checker"],
    ),
    (
        "episodes_fit_the_context",
        1,
        [*PPO, "ppo.max_new_tokens=240"],
        ["ppo.max_new_tokens (240)", "sequence_length (256)"],
    ),
    (
        "iterations_are_whole_steps",
        1,
        [*PPO, "ppo.rollout_batch_size=24"],
        ["ppo.rollout_batch_size (24)", "(16)", "32"],
    ),
    ("ppo_has_no_ramp", 1, [*PPO, "optim.ramp_start=8", "optim.ramp_tokens=99"], ["optim.ramp_start (8)", "null"]),
    ("pretraining_gradients_have_text", 1, [*PPO, "data.corpora=[]"], ["ppo.ptx_coefficient", "data.corpora"]),
    (
        *("layouts_of_ppo", 1, [*PPO, "ppo.reward_parallel={tensor_parallel_size: 3}"]),
        ["ppo calls reward", "model.num_attention_heads (4)", "ppo.reward_parallel.tensor_parallel_size (3)", "3 or 6"],
    ),
    (
        *("layouts_of_ppo", 2, [*PPO, "ppo.rollout_parallel={pipeline_parallel_size: 2}", "ppo.rollout_batch_size=1"]),
        ["ppo.rollout_batch_size (1)", "ppo.rollout_parallel.pipeline_parallel_size (2)", "ppo calls rollout"],
    ),
    (
        *("layouts_of_ppo", 2, [*PPO, "ppo.critic_parallel={micro_batch_size: 3}"]),
        ["optim.global_batch_size (16)", "ppo.critic_parallel.micro_batch_size (3)", "ppo calls critic"],
    ),
    (
        *("layouts_of_ppo", 2, [*PPO, "parallel=tensor", "ppo.scoring_model={name: small, num_attention_heads: 3}"]),
        ["ppo calls critic (small)", "model.num_attention_heads (3)", "parallel.tensor_parallel_size (2)"],
    ),
    (
        "layouts_of_ppo",
        1,
        [*PPO, "ppo.critic_parallel={micro_batch_size: 0}"],
        ["ppo.critic_parallel.micro_batch_size (0)"],
    ),
    (
        *("layouts_of_ppo", 1, [*PPO, "ppo.reference_parallel={engine: deepspeed, zero_stage: 3}"]),
        ["ppo.reference_parallel.engine (deepspeed)", "zero_stage (3)", "megatron and 1"],
    ),
    ("split_is_whole", 1, ["data.split=[0.9,0.2,0.1]"], ["data.split (0.9, 0.2, 0.1)", "1.2"]),
    ("split_is_whole", 1, ["data.split=[1.5,-0.5,0]"], ["data.split (1.5, -0.5, 0.0)"]),
    ("split_is_whole", 1, ["data.split=[0,1,0]"], ["data.split (0.0, 1.0, 0.0)"]),
]


@cache
def composed(*options: str) -> dict:
    return to_dict(load(["experiment=demo", "parallel.micro_batch_size=1", "optim.global_batch_size=16", *options]))


def demo(overrides: list[str]) -> Config:
    """The demo with overrides; only options of groups are composed, for speed."""
    values = copy.deepcopy(composed(*(text for text in overrides if text.partition("=")[0] in groups())))
    for text in overrides:
        key, _, value = text.partition("=")
        section, _, name = key.rpartition(".")
        if key not in groups():
            reduce(getitem, section.split(".") if section else [], values)[name] = yaml.safe_load(value)
    return from_dict(values)


def violations(overrides: list[str], world_size: int) -> list[str]:
    try:
        rules.check(demo(overrides), world_size)
    except ConfigError as error:
        lines = str(error).splitlines()
        return [line.strip() for line in lines[1:]] or lines
    return []


@pytest.mark.parametrize(("rule", "world_size", "overrides", "named"), BROKEN)
def test_a_broken_rule_names_the_fields_and_the_fix(rule, world_size, overrides, named):
    config = demo(overrides)
    lines = list(next(found for found in rules.RULES if found.__name__ == rule)(config, world_size))
    assert any(all(part in line for part in named) for line in lines), lines
    assert set(lines) <= set(violations(overrides, world_size))


def test_every_rule_is_broken_by_an_example():
    known = {
        name
        for home in (rules, layout_rules, alignment_rules)
        for name, value in vars(home).items()
        if inspect.isfunction(value) and list(inspect.signature(value).parameters) == ["config", "world_size"]
    } - {"check", "data_parallel_size"}
    assert known == {rule.__name__ for rule in rules.RULES} == {example[0] for example in BROKEN} | {"ranges"}


def ranges(cls: type = Config, prefix: str = "") -> dict[str, list]:
    """Every number that can be set, and its ranges."""
    found = {}
    for name, kind in get_type_hints(cls, include_extras=True).items():
        plain = fields()[prefix + name]
        if dataclasses.is_dataclass(plain):
            found |= ranges(plain, f"{prefix}{name}.")
        elif plain in (int, float, int | None, float | None):
            found[prefix + name] = ranges_of(kind)
    return found


RANGES = ranges()


def within(*kinds) -> list[str]:
    return [name for name, limits in RANGES.items() if set(kinds) & set(limits)]


@pytest.mark.parametrize("name", within(POSITIVE))
def test_positive_fields(name):
    for value in (0, -1):
        shown = float(value) if fields()[name] in (float, float | None) else value
        assert f"{name} ({shown}) must be above 0" in violations([f"{name}={value}"], 2)


@pytest.mark.parametrize("name", within(NON_NEGATIVE))
def test_fields_that_may_be_zero(name):
    assert not [line for line in violations([f"{name}=0"], 1) if line.startswith(f"{name} ")]
    assert any(line.startswith(f"{name} (-1") for line in violations([f"{name}=-1"], 1))


@pytest.mark.parametrize("name", (*within(BELOW_ONE, FRACTION), "seed"))
def test_bounded_fields(name):
    for value in (-1, 2**32):
        assert any(line.startswith(f"{name} (") for line in violations([f"{name}={value}"], 1))


def test_every_number_is_bounded():
    numbers = {name for name, kind in fields().items() if kind in (int, float, int | None, float | None)}
    bounded = set(within(POSITIVE, NON_NEGATIVE, BELOW_ONE, FRACTION))
    assert numbers == bounded
    assert len(numbers) > 90


def test_all_violations_are_listed():
    lines = violations(["model.num_attention_heads=3", "parallel.zero_stage=2", "data.split=[1,1,1]", "optim.lr=0"], 1)
    assert len(lines) == 4
    assert all(re.search(pattern, " ".join(lines)) for pattern in ("heads", "zero", "split", "optim.lr"))


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (4, ["parallel=3d"]),
        (8, ["parallel=3d"]),
        (2, ["parallel=interleaved", "optim.ramp_start=2", "optim.ramp_tokens=1000"]),
        (2, ["parallel=pipeline", "optim.ramp_start=1", "optim.ramp_tokens=1000"]),  # a ramp may start below the stages
        (2, ["model=demo_modern", "parallel=tensor_sequence"]),
        (1, ["model=demo_modern"]),
        (1, ["optim.warmup_tokens=0", "checkpoint.keep_every=0", "checkpoint.interval=0"]),
        (1, ["checkpoint.keep_every=5", "checkpoint.interval=0"]),
    ],
)
def test_what_works_is_not_refused(world_size, overrides):
    assert violations(overrides, world_size) == []
