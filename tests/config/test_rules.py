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

from megagpt.config import alignment_rules, embedding_rules, layout_rules, model_rules, rules, task_rules
from megagpt.config.bounds import BELOW_ONE, FRACTION, NON_NEGATIVE, POSITIVE, ranges_of
from megagpt.config.explain import fields
from megagpt.config.load import from_dict, groups, load, to_dict
from megagpt.config.schema import Config
from megagpt.errors import ConfigError
from tests.config.broken_examples import BROKEN, EMBED


@cache
def composed(*options: str) -> dict:
    given = {text.partition("=")[0] for text in options}
    plain = [text for text in ("model=demo", "optim=demo") if text.partition("=")[0] not in given]
    sizes = ["parallel.micro_batch_size=1", "optim.global_batch_size=16"]
    return to_dict(load(["experiment=demo", *plain, *sizes, *options]))


def demo(overrides: list[str]) -> Config:
    """The demo by AdamW with learned positions, and with overrides; only options of groups are composed, for speed."""
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
        for home in (rules, model_rules, layout_rules, alignment_rules, embedding_rules, task_rules)
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
        (1, [*EMBED, "embed.max_tokens=256", "embed.dimensions=[16,255]", "reliability.spike_threshold=0"]),
        (2, ["stage.tasks.names=[lambada]", "stage.tasks.shots=[0,8]", "parallel=tensor"]),
        (2, ["parallel.engine=deepspeed", "parallel.zero_stage=3"]),
        (1, [*EMBED, "embed.temperature=0.005", "embed.learn_temperature=false"]),
    ],
)
def test_what_works_is_not_refused(world_size, overrides):
    assert violations(overrides, world_size) == []
