"""PPO's models, each in its own layout: policy, its copy for rollouts, critic, reference, and reward model."""

import dataclasses
from pathlib import Path

import torch.distributed as dist

from megagpt.config.alignment_rules import layout_problems
from megagpt.config.load import raise_all
from megagpt.config.schema import Config
from megagpt.data import instructions
from megagpt.data.tokenizer import Tokenizer
from megagpt.parallel.build import build_engine
from megagpt.parallel.engine import Engine, Objective
from megagpt.parallel.layouts import Layouts
from megagpt.parallel.megatron import MegatronEngine
from megagpt.rl.objectives import LogProbObjective, PolicyObjective, ValueObjective
from megagpt.rl.offload import offload_to_cpu
from megagpt.rl.rewards import CheckerReward, ModelReward, Reward
from megagpt.rl.rollout_generator import RolloutGenerator
from megagpt.rl.scoring import TokenModel
from megagpt.stages.scoring import reward_model_config, with_scalar_head
from megagpt.stages.weights import load_weights


class PPOModels:
    """Builds the models and loads the weights of all but the policy, whose weights come from the run's checkpoint."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        """Collective. Raises ConfigError where a model does not fit its layout, or was never trained to score."""
        self.config, ppo = config, config.ppo
        self.engines: list[Engine] = []
        """The engines of all models."""
        self.sources: dict[str, Path] = {}
        """{configuration field: checkpoint} for every loaded checkpoint."""
        self._layouts = Layouts(config.parallel)
        self.policy = build_engine(config, PolicyObjective(ppo, tokenizer.vocab_size))
        self.engines.append(self.policy)
        log_probs = LogProbObjective(ppo.temperature, tokenizer.vocab_size)
        self.reference = self._filled("reference", config, log_probs)
        critic = self._with_scalar_head("critic", ppo.critic or ppo.reward_model)
        self.critic = self._filled("critic", critic, ValueObjective(ppo))
        rollout_copy = None
        if ppo.answers_in_a_copy(config.parallel):
            rollout_copy = self._build("rollout", config, log_probs)
        self.rollouts = RolloutGenerator(config, self.policy, rollout_copy, tokenizer)
        self.reward = self._reward(tokenizer)

    def _reward(self, tokenizer: Tokenizer) -> Reward:
        ppo = self.config.ppo
        if ppo.reward == "checker":
            return CheckerReward(instructions.check, tokenizer)
        reward = self._with_scalar_head("reward", ppo.reward_model)
        return ModelReward(self._filled("reward", reward, ValueObjective(ppo)))

    def _filled(self, name: str, config: Config, objective: Objective) -> TokenModel:
        """PPO's model `name`, with the weights of `config.checkpoint.load`."""
        engine = self._build(name, config, objective)
        source = load_weights(config, engine)
        for field, given in (("checkpoint", "load"), ("ppo", "reward_model"), ("ppo", "critic")):
            if getattr(getattr(self.config, field), given) == config.checkpoint.load:
                self.sources[f"{field}.{given}"] = source
        own = self.config.ppo.layout(name, self.config.parallel)
        return TokenModel(engine, own.micro_batch_size, offload=self.config.ppo.offload and name != "critic")

    def _build(self, name: str, config: Config, objective: Objective) -> Engine:
        """A model of the architecture `config.model`, without loaded weights, in the layout of PPO's model `name`."""
        raise_all(list(layout_problems(config, name, config.model, dist.get_world_size())))
        own = dataclasses.replace(config, parallel=config.ppo.layout(name, config.parallel))
        if name == "critic":
            engine = self._layouts.build(own.parallel, lambda: build_engine(own, objective))
        else:
            engine = self._layouts.build(own.parallel, lambda: MegatronEngine(own, objective, training=False))
            if config.ppo.offload:
                offload_to_cpu(engine)
        self.engines.append(engine)
        return engine

    def _with_scalar_head(self, name: str, source: str | None) -> Config:
        """The configuration of PPO's model `name`, with a scalar head, that loads the weights of another run.

        source: the run; None means the run that the policy starts from. Raises ConfigError when a reward model was not
        trained by stage reward, or when the architecture differs from `ppo.scoring_model`.
        """
        config = self.config
        source = source or config.checkpoint.load
        if name == "reward":
            own = reward_model_config(config, source, "ppo.reward_model")
        else:
            own = with_scalar_head(config, source)
        planned = config.ppo.scoring_model
        if planned is not None:
            raise_all(
                [
                    f"ppo.scoring_model.{field} is {getattr(planned, field)}, but the {name} model starts from"
                    f" {source}, whose {field} is {getattr(own.model, field)}: set ppo.scoring_model.{field} to this"
                    " value, or ppo.scoring_model=null"
                    for field in ("num_layers", "hidden_size", "num_attention_heads", "sequence_length")
                    if getattr(planned, field) != getattr(own.model, field)
                ]
            )
        return own
