"""The engine of PPO: one step updates policy and critic."""

import dataclasses
from collections.abc import Iterator

import torch

from megagpt.config.schema import PPOConfig
from megagpt.data.batch import Batch
from megagpt.parallel.engine import Engine, StepResult
from megagpt.parallel.shards import Shard
from megagpt.rl.episodes import Episodes
from megagpt.rl.scoring import Scorer

WEIGHTS, CRITIC, EMA = "model/", "critic/", "ema/"
"""What names of the policy's weights, of the critic's tensors and of the policy's running mean begin with."""


class ActorCritic:
    """Implements `megagpt.parallel.engine.Engine` with two engines, for policy and critic.

    A checkpoint holds the policy as any run's model, the critic, the running mean of the policy's weights, and the
    episodes that are being learnt from.
    """

    def __init__(self, policy: Engine, critic: Scorer, ppo: PPOConfig, lr: float, episodes: Episodes) -> None:
        """lr: the policy's peak learning rate, whose schedule the critic's follows."""
        self.policy, self.critic, self.ppo, self.lr, self.episodes = policy, critic.engine, ppo, lr, episodes
        self.critic_batch_size = critic.micro_batch_size
        self.dims, self.device, self.modules = policy.dims, policy.device, policy.modules
        self.updates = torch.zeros(2, dtype=torch.int64)
        """Updates of the policy and of the critic so far."""
        self.ema = self._copies() if ppo.ema_decay else []
        """The running mean, of what this rank saves of the weights."""

    def _weights(self) -> Iterator[Shard]:
        return (shard for shard in self.policy.shards(for_saving=True) if shard.name.startswith(WEIGHTS))

    def _copies(self) -> list[Shard]:
        device = "cpu" if self.ppo.offload else self.device
        return [
            dataclasses.replace(
                shard, name=EMA + shard.name.removeprefix(WEIGHTS), data=shard.data.float().to(device, copy=True)
            )
            for shard in self._weights()
        ]

    def train_step(self, batches: Iterator[Batch], num_micro_batches: int, lr: float) -> StepResult:
        """See `Engine.train_step`; `batches` has `num_micro_batches` of episodes, each with its pretraining text."""
        batches = list(batches)  # of which the loader makes the step's episodes known
        value = self._train_critic(self.ppo.value_lr * lr / self.lr)
        self.updates[1] += value.applied
        if self.updates[1] <= self.ppo.critic_warmup_steps and value.applied:
            policy = dataclasses.replace(self.policy.evaluate(iter(batches), len(batches)), applied=True)
        else:
            policy = self.policy.train_step(iter(batches), len(batches), lr)
            self.updates[0] += policy.applied
            if policy.applied:
                self._average()
        critic = {"value_loss": value.loss, "value_grad_norm": value.grad_norm} | value.metrics
        figures, self.episodes.figures = self.episodes.figures, {}
        return dataclasses.replace(
            policy, applied=policy.applied and value.applied, metrics=policy.metrics | critic | figures
        )

    def _train_critic(self, lr: float) -> StepResult:
        dims, rows = self.critic.dims, torch.tensor(self.episodes.step, device=self.episodes.tokens.device)
        batches = self.episodes.micro_batches(rows, self.critic_batch_size, dims.data_rank, dims.data_size)
        return self.critic.train_step(iter(batches), len(batches), lr)

    @torch.no_grad()
    def _average(self) -> None:
        for mean, shard in zip(self.ema, self._weights() if self.ema else (), strict=True):
            mean.data.lerp_(shard.data.to(mean.data.device, torch.float32), 1 - self.ppo.ema_decay)

    def evaluate(self, batches: Iterator[Batch], num_micro_batches: int) -> StepResult:
        """See `Engine.evaluate`: of the policy."""
        return self.policy.evaluate(batches, num_micro_batches)

    def outputs(self, batches: Iterator[Batch], num_micro_batches: int) -> list[torch.Tensor]:
        """See `Engine.outputs`: of the policy."""
        return self.policy.outputs(batches, num_micro_batches)

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """See `Engine.shards`. Names are the policy's, critic/..., ema/..., episodes/... and updates."""
        yield from self.policy.shards(for_saving)
        for shard in self.critic.shards(for_saving):
            yield dataclasses.replace(shard, name=CRITIC + shard.name)
        yield from self.ema
        if not for_saving or self.dims.rank == 0:
            yield from self.episodes.shards()
            yield Shard.whole("updates", self.updates)

    def post_load(self, optimizer_step: int) -> None:
        """See `Engine.post_load`."""
        policy, critic = self.updates.tolist() if optimizer_step else (0, 0)
        self.policy.post_load(policy)
        self.critic.post_load(critic)
        if not optimizer_step and self.ema:
            self.ema = self._copies()

    def random_state(self) -> dict[str, torch.Tensor]:
        """See `Engine.random_state`."""
        return self.policy.random_state()

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """See `Engine.set_random_state`."""
        self.policy.set_random_state(state)
