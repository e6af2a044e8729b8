"""Loads models of other runs that score this run's responses."""

import dataclasses
from pathlib import Path

import torch.distributed as dist

from megagpt import checkpoint
from megagpt.config.layout_rules import LAYOUT_RULES
from megagpt.config.load import raise_all
from megagpt.config.schema import Config, ModelConfig
from megagpt.errors import ConfigError
from megagpt.parallel import cpu
from megagpt.parallel.common import random_state, set_random_state
from megagpt.parallel.engine import Objective
from megagpt.parallel.megatron import MegatronEngine
from megagpt.stages.weights import load_weights


def reward_model_config(config: Config, source: str, field: str) -> Config:
    """`config` for the reward model of the run `source`. field: the configuration field that names it, for errors.

    Raises ConfigError when the model was not trained by stage reward.
    """
    if _saved_model(source).head != "scalar":
        raise ConfigError(f"{field} ({source}) was never trained to score text: give a run of stage reward")
    return with_scalar_head(config, source)


def with_scalar_head(config: Config, source: str) -> Config:
    """`config` for a model with a scalar head that loads the weights of the run `source`, which may have any head."""
    model = dataclasses.replace(
        _saved_model(source),
        head="scalar",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        vocab_size=config.model.vocab_size,
    )
    load = dataclasses.replace(config.checkpoint, load=source)
    return dataclasses.replace(config, model=model, checkpoint=load)


def frozen_engine(config: Config, objective: Objective) -> tuple[MegatronEngine, Path]:
    """The model of `checkpoint.load` in the run's layout, without gradients and optimizer; and its checkpoint's path.

    Raises ConfigError when the model does not fit the layout.
    """
    raise_all([problem for rule in LAYOUT_RULES for problem in rule(config, dist.get_world_size())])
    parallel = dataclasses.replace(config.parallel, engine="megatron", zero_stage=1)
    before = random_state(cpu.device())
    engine = MegatronEngine(dataclasses.replace(config, parallel=parallel), objective, training=False)
    source = load_weights(config, engine)
    set_random_state(cpu.device(), before)  # training's random numbers do not depend on this model
    return engine, source


def _saved_model(source: str) -> ModelConfig:
    return checkpoint.buildable_config(checkpoint.find(Path(source))).model
