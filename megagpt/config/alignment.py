"""PPO's part of the configuration."""

from dataclasses import dataclass, replace
from typing import Literal

from megagpt.config.architecture import ModelConfig, ParallelConfig
from megagpt.config.bounds import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


@dataclass(frozen=True)
class PPOConfig:
    """Stage ppo: proximal policy optimisation with a KL penalty and pretraining gradients (arXiv 2203.02155).

    An episode is a prompt of data.conversations with one response. A step updates the policy and the critic on
    optim.global_batch_size episodes. The policy's parallel layout is `parallel`. The other models may have layouts of
    their own with the same fields, as in ppo.critic_parallel.tensor_parallel_size=2; a field that such a layout does
    not set has its default, not the policy's value.
    """

    reward: Literal["model", "checker"] = "model"
    """Source of scores: a reward model, or the program that the prompt's record names in its field "check"."""
    reward_model: str | None = None
    """Run folder or checkpoint of stage reward, for reward=model."""
    critic: str | None = None
    """Run folder or checkpoint whose weights the critic starts from. null: the weights of reward_model; without a
    reward model, the policy's weights with a new head."""
    scoring_model: ModelConfig | None = None
    """Architecture of critic and reward model, for plans and checks before their checkpoints exist. null: the
    architecture in their checkpoints; in a plan, the policy's."""
    rollout_parallel: ParallelConfig | None = None
    """Layout of the policy for rollouts; null: `parallel`. If it divides the model differently from `parallel`, or if
    ZeRO stage 3 shards the policy's parameters, a copy of the policy generates; it receives the weights in every
    iteration."""
    critic_parallel: ParallelConfig | None = None
    """Layout of the critic; null: the policy's."""
    reference_parallel: ParallelConfig | None = None
    """Layout of the reference model, which the KL penalty keeps the policy close to; null: the policy's."""
    reward_parallel: ParallelConfig | None = None
    """Layout of the reward model; null: the policy's."""
    episodes: PositiveInt = 256_000
    """Episodes of the whole run."""
    rollout_batch_size: PositiveInt = 512
    """Episodes of one iteration: the policy generates them, they are scored, then both models learn from them."""
    epochs: PositiveInt = 1
    """Passes over an iteration's episodes."""
    max_prompt_tokens: PositiveInt = 1024
    """Largest prompt in tokens; longer prompts are left out."""
    max_new_tokens: PositiveInt = 1024
    """Largest response in tokens."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature. All log-probabilities are computed at this temperature."""
    generation_batch_size: PositiveInt = 64
    """Responses that a replica generates at the same time."""
    kl_coefficient: NonNegativeFloat = 0.02
    """Weight of the KL penalty in the reward: log p - log p of the reference model, per token."""
    kl_target: PositiveFloat | None = None
    """Target KL per response in nats; null keeps the coefficient fixed."""
    kl_horizon: PositiveInt = 10_000
    """Episodes over which the coefficient adapts."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Number subtracted from the score of a response without an end-of-text token."""
    whiten_rewards: bool = False
    """Whether rewards are scaled to variance 1 over an iteration."""
    whiten_advantages: bool = True
    """Whether advantages are scaled to mean 0 and variance 1 over an iteration."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    gae_lambda: Fraction = 0.95
    """Decay of generalized advantage estimates (lambda)."""
    clip_ratio: PositiveFloat = 0.2
    """The probability ratio to the old policy is clipped to 1 - clip_ratio .. 1 + clip_ratio."""
    clip_value: PositiveFloat = 0.2
    """Largest difference between a new value and the old one; the critic's loss clips larger differences."""
    critic_lr: PositiveFloat = 9e-6
    """Peak learning rate of the critic; its schedule is the policy's."""
    critic_warmup_steps: NonNegativeInt = 0
    """Steps at the start in which only the critic learns."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the policy's entropy in its objective."""
    ptx_coefficient: NonNegativeFloat = 27.8
    """Weight of the pretraining loss on data.corpora in every step (PPO-ptx); 0 turns it off."""
    ptx_ratio: PositiveInt = 8
    """Pretraining sequences for each episode."""
    ema_decay: FractionBelowOne = 0.992
    """Decay of the exponential moving average of the policy's weights, which checkpoints also hold; 0 turns it off."""
    offload: bool = False
    """Whether the reference model, reward model, rollout copy and moving average stay in CPU memory while they are not
    used."""

    @property
    def row_length(self) -> int:
        """Length of the longest episode in tokens."""
        return self.max_prompt_tokens + self.max_new_tokens

    def layout(self, model: str, policy: ParallelConfig) -> ParallelConfig:
        """Layout of one of PPO's models.

        model: "rollout", "critic", "reference" or "reward". policy: the policy's layout. Only the critic is trained;
        the other models use the engine megatron, without sharded parameters and without offload.
        """
        chosen = getattr(self, f"{model}_parallel") or policy
        if model == "critic":
            return chosen
        kept = {"engine": "megatron", "zero_stage": 1, "offload_optimizer": "none", "offload_parameters": "none"}
        return replace(chosen, **kept, recompute="none", overlap_grad_reduce=None, overlap_param_gather=False)

    def answers_in_a_copy(self, policy: ParallelConfig) -> bool:
        """Whether a copy of the policy, whose own layout is `policy`, generates the responses."""
        own = self.layout("rollout", policy)
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "virtual_pipeline_size")
        return policy.zero_stage == 3 or any(getattr(own, size) != getattr(policy, size) for size in sizes)
