"""The part of the configuration that says how a policy learns from a reward."""

from dataclasses import dataclass, replace
from typing import Literal

from megagpt.config.architecture import ModelConfig, ParallelConfig


@dataclass(frozen=True)
class PPOConfig:
    """Stage ppo: proximal policy optimisation with a KL penalty and pretraining gradients (arXiv 2203.02155).

    An episode is one answer to a prompt of data.conversations. A step updates the policy and the critic on
    optim.global_batch_size episodes. The policy's layout is `parallel`; those of the other models, where they are not
    null, are given whole, with fields as `parallel` has them: ppo.critic_parallel.tensor_parallel_size=2.
    """

    reward: Literal["model", "checker"] = "model"
    """What scores an answer: a reward model, or the program that the prompt's record names in its "check"."""
    reward_model: str | None = None
    """Run folder or checkpoint of stage reward, for reward=model."""
    critic: str | None = None
    """What the critic starts from; null: reward_model, or else the policy's weights with a new head."""
    scoring_model: ModelConfig | None = None
    """Architecture of critic and reward model, to plan a run and check layouts before their checkpoints exist; null: as
    the checkpoints say, or in a plan the policy's."""
    rollout_parallel: ParallelConfig | None = None
    """Layout of the policy while it answers, in a copy that every iteration begins with. null: as the policy's; then
    there is no copy, unless ZeRO stage 3 shares out the policy's parameters."""
    critic_parallel: ParallelConfig | None = None
    """Layout of the critic; null: as the policy's."""
    reference_parallel: ParallelConfig | None = None
    """Layout of the model that the policy is held to; null: as the policy's."""
    reward_parallel: ParallelConfig | None = None
    """Layout of the reward model; null: as the policy's."""
    episodes: int = 256_000
    """Answers to learn from in all."""
    rollout_batch_size: int = 512
    """Answers in one iteration: generated and scored by the policy as it is, then learnt from."""
    epochs: int = 1
    """Passes over an iteration's answers."""
    max_prompt_tokens: int = 1024
    """Longer prompts are left out."""
    max_new_tokens: int = 1024
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """Of sampling; all log-probabilities are those of the distribution at this temperature."""
    generation_batch_size: int = 64
    """Answers that a replica generates at a time."""
    kl_coefficient: float = 0.02
    """Weight of the divergence from the model that the run started from, per token, in the reward."""
    kl_target: float | None = None
    """Nats of divergence an answer that the coefficient is adapted to; null: it stays."""
    kl_horizon: int = 10_000
    """Episodes over which the coefficient adapts."""
    missing_eos_penalty: float = 1.0
    """Taken off the score of an answer that does not end by itself."""
    whiten_rewards: bool = False
    """Whether rewards are scaled to variance 1 over an iteration."""
    whiten_advantages: bool = True
    """Whether advantages are scaled to mean 0 and variance 1 over an iteration."""
    gamma: float = 1.0
    """Discount of later rewards (gamma)."""
    gae_lambda: float = 0.95
    """Decay of generalized advantage estimates (lambda)."""
    clip_ratio: float = 0.2
    """How far the ratio to the old policy may leave 1 and still be rewarded."""
    clip_value: float = 0.2
    """How far a value may leave the old one and still be rewarded."""
    value_lr: float = 9e-6
    """Peak learning rate of the critic, whose schedule is the policy's."""
    critic_warmup_steps: int = 0
    """Steps in which only the critic learns."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy in its objective."""
    ptx_coefficient: float = 27.8
    """Weight of the pretraining loss on data.corpora, which pulls every step (PPO-ptx); 0 turns it off."""
    ptx_ratio: int = 8
    """Pretraining sequences for each episode."""
    ema_decay: float = 0.992
    """Decay of the running mean of the policy's weights, kept beside it in checkpoints; 0 turns it off."""
    offload: bool = False
    """Whether the models that do not learn, the copy that answers, and the running mean wait in the CPU's memory."""

    @property
    def row_length(self) -> int:
        """Tokens of the longest episode."""
        return self.max_prompt_tokens + self.max_new_tokens

    def layout(self, model: str, policy: ParallelConfig) -> ParallelConfig:
        """Layout of the model `rollout`, `critic`, `reference` or `reward`, where `policy` is the policy's.

        All but the critic learn nothing, so that the engine is Megatron's, and nothing is shared out or offloaded.
        """
        chosen = getattr(self, f"{model}_parallel") or policy
        if model == "critic":
            return chosen
        kept = {"engine": "megatron", "zero_stage": 1, "offload_optimizer": "none", "offload_parameters": "none"}
        return replace(chosen, **kept, recompute="none", overlap_grad_reduce=False)

    def answers_in_a_copy(self, policy: ParallelConfig) -> bool:
        """Whether answers are written by a copy of the policy, which itself is laid out as `policy`."""
        own = self.layout("rollout", policy)
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "virtual_pipeline_size")
        return policy.zero_stage == 3 or any(getattr(own, size) != getattr(policy, size) for size in sizes)
