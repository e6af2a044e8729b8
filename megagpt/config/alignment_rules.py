"""Rules of learning from a reward. See `rules.py`."""

import re
from collections.abc import Iterator
from dataclasses import replace

from megagpt.config.bounds import out_of_range
from megagpt.config.fields import nearest_multiples
from megagpt.config.layout_rules import LAYOUT_RULES
from megagpt.config.schema import Config, ModelConfig

PPO_MODELS = ("rollout", "critic", "reference", "reward")
"""PPO's models beside the policy, as fields of `PPOConfig` name them."""


def heads_go_with_stages(config: Config, world_size: int) -> Iterator[str]:
    """Stage reward trains a scalar head, stage embed an embedding head; all other stages train language models."""
    stage, head = config.stage.name, config.model.head
    wanted = {"reward": "scalar", "embed": "embedding"}.get(stage, "tokens")
    if head != wanted:
        yield f"model.head ({head}) does not go with stage.name ({stage}): set model.head={wanted}"


def episodes_have_a_reward(config: Config, world_size: int) -> Iterator[str]:
    """Episodes that a reward model scores need the name of one."""
    if config.stage.name == "ppo" and config.ppo.reward == "model" and not config.ppo.reward_model:
        yield (
            "ppo.reward (model) needs ppo.reward_model, which is null: give the run folder of stage reward, or set"
            " ppo.reward=checker for prompts whose records name a checker"
        )


def episodes_fit_the_context(config: Config, world_size: int) -> Iterator[str]:
    """The longest prompt with the longest response is within the model's context."""
    ppo, length = config.ppo, config.model.sequence_length
    if config.stage.name == "ppo" and ppo.row_length > length:
        yield (
            f"ppo.max_prompt_tokens ({ppo.max_prompt_tokens}) + ppo.max_new_tokens ({ppo.max_new_tokens}) ="
            f" {ppo.row_length} is above model.sequence_length ({length}): lower one of the first two"
        )


def iterations_are_whole_steps(config: Config, world_size: int) -> Iterator[str]:
    """An iteration's episodes make whole steps."""
    count, batch = config.ppo.rollout_batch_size, config.optim.global_batch_size
    if config.stage.name == "ppo" and count % batch:
        yield (
            f"ppo.rollout_batch_size ({count}) is not a multiple of optim.global_batch_size ({batch}):"
            f" {nearest_multiples(count, batch)}"
        )


def ppo_has_no_ramp(config: Config, world_size: int) -> Iterator[str]:
    """All steps of an iteration have the same size."""
    if config.stage.name == "ppo" and config.optim.ramp_start is not None:
        yield (
            f"optim.ramp_start ({config.optim.ramp_start}) lets the batch grow, but stage.name is ppo, whose iterations"
            " are whole steps: set optim.ramp_start=null"
        )


def pretraining_gradients_have_text(config: Config, world_size: int) -> Iterator[str]:
    """PPO-ptx also trains on the corpora, so they must be given."""
    ppo = config.ppo
    if config.stage.name == "ppo" and ppo.ptx_coefficient and not config.data.corpora:
        yield (
            f"ppo.ptx_coefficient ({ppo.ptx_coefficient:g}) adds the loss on data.corpora, which is empty: name the"
            " pretraining corpora, or set ppo.ptx_coefficient=0"
        )


def layouts_of_ppo(config: Config, world_size: int) -> Iterator[str]:
    """Every model beside the policy fits its layout, as the policy fits `parallel`."""
    if config.stage.name != "ppo":
        return
    for name in PPO_MODELS:
        own = getattr(config.ppo, f"{name}_parallel")
        if own is not None and name != "critic" and (own.engine != "megatron" or own.zero_stage > 1):
            yield (
                f"ppo.{name}_parallel.engine ({own.engine}) and zero_stage ({own.zero_stage}) shard gradients or"
                " optimizer state, which a model that does not learn does not have: leave them at megatron and 1"
            )
        elif own is not None or config.ppo.scoring_model is not None:
            model = config.model if name in ("rollout", "reference") else config.ppo.scoring_model or config.model
            yield from layout_problems(config, name, model, world_size)


def layout_problems(config: Config, name: str, model: ModelConfig, world_size: int) -> Iterator[str]:
    """Messages for the layout rules that one of PPO's models breaks.

    name: one of `PPO_MODELS`. model: its architecture.
    """
    ppo, own = config.ppo, getattr(config.ppo, f"{name}_parallel")
    parallel = ppo.layout(name, config.parallel)
    section, batch = "parallel" if own is None else f"ppo.{name}_parallel", "ppo.rollout_batch_size"
    if problems := list(out_of_range(parallel, f"{section}.")):
        yield from problems
        return
    size = ppo.rollout_batch_size
    if name == "critic":
        batch, size = "optim.global_batch_size", config.optim.global_batch_size
    optim = replace(config.optim, global_batch_size=size, ramp_start=None)
    alone = replace(config, model=model, parallel=parallel, optim=optim)
    for rule in LAYOUT_RULES:
        for problem in rule(alone, world_size):
            problem = re.sub(r"\bparallel\.", f"{section}.", problem).replace("optim.global_batch_size", batch)
            yield f"for the model ppo calls {name} ({model.name}), {problem}"


ALIGNMENT_RULES = (
    episodes_have_a_reward,
    episodes_fit_the_context,
    iterations_are_whole_steps,
    ppo_has_no_ramp,
    heads_go_with_stages,
    pretraining_gradients_have_text,
    layouts_of_ppo,
)
"""The rules of stages reward and ppo."""
