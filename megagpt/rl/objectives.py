"""Objectives of PPO's models: policy, critic, and the frozen models."""

import torch
from torch import Tensor

from megagpt.config.schema import PPOConfig
from megagpt.data.batch import Batch
from megagpt.kernels.cross_entropy import cross_entropy
from megagpt.model.gpt import GPT
from megagpt.model.losses import entropy
from megagpt.rl.episodes import EpisodeBatch, PretrainingBatch
from megagpt.rl.ppo_math import clipped_policy_loss, clipped_value_loss
from megagpt.train.objectives import LanguageModelObjective


class LogProbObjective(LanguageModelObjective):
    """Log-probabilities of generated tokens under the sampling distribution, softmax(logits / temperature)."""

    def __init__(self, temperature: float, vocab_size: int) -> None:
        """vocab_size: number of tokens that can be sampled; the model's vocabulary may be padded beyond it."""
        self.temperature, self.vocab_size = temperature, vocab_size

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """See `Objective.forward`; the last stage returns float32 [B, S], 0 where `loss_mask` is 0."""
        output = model(batch.tokens, batch.position_ids, None)
        gpt = unwrap(model)
        if not gpt.post_process:
            return output
        chosen = batch.loss_mask.bool()
        result = torch.zeros_like(batch.loss_mask)
        result[chosen] = -self.losses(output[chosen].float() / self.temperature, batch.labels[chosen], gpt)
        return result

    def losses(self, logits: Tensor, labels: Tensor, gpt: GPT, inplace: bool = True) -> Tensor:
        """Cross-entropy, float32 [n], of labels [n] under logits [n, V / tp]; overwrites the logits if `inplace`."""
        group, backend = gpt.pg_collection.tp, gpt.cross_entropy_backend
        return cross_entropy(logits, labels, self.vocab_size, group, inplace=inplace, backend=backend)


class PolicyObjective(LogProbObjective):
    """PPO's clipped objective on episodes; next-token prediction on other batches.

    The loss is a sum over tokens that the policy generated. Pretraining batches add to the sum but not to the count.
    """

    metric_names = ("approximate_kl", "clip_fraction", "ratio", "entropy", "pretraining_loss")

    def __init__(self, ppo: PPOConfig, vocab_size: int) -> None:
        super().__init__(ppo.temperature, vocab_size)
        self.ppo = ppo

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """See `Objective.forward`; for episodes float32 [n, 2]: log-probability and entropy of n generated tokens."""
        if not isinstance(batch, EpisodeBatch):
            return LanguageModelObjective.forward(self, model, batch)
        output = model(batch.tokens, batch.position_ids, None)
        gpt = unwrap(model)
        if not gpt.post_process:
            return output
        chosen = batch.loss_mask.bool()
        logits = output[chosen].float() / self.temperature
        learnt = self.ppo.entropy_coefficient > 0
        with torch.set_grad_enabled(learnt and torch.is_grad_enabled()):
            entropies = entropy(logits, self.vocab_size, gpt.pg_collection.tp)
        losses = self.losses(logits, batch.labels[chosen], gpt, inplace=not learnt)
        return torch.stack((-losses, entropies), -1)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `Objective.loss`."""
        if not isinstance(batch, EpisodeBatch):
            loss, count, _ = super().loss(output, batch)
            zero = torch.zeros_like(loss.detach())
            if isinstance(batch, PretrainingBatch):
                return batch.weight * loss, 0 * count, (zero,) * 4 + (self._unweighted(batch) * loss.detach(),)
            return loss, count, (zero,) * 5
        chosen = batch.loss_mask.bool()
        logprobs, entropies = output.unbind(-1)
        old, advantages = batch.logprobs[chosen], batch.advantages[chosen]
        losses, ratio = clipped_policy_loss(logprobs, old, advantages, self.ppo.clip_ratio)
        loss = (losses - self.ppo.entropy_coefficient * entropies).sum()
        clipped = (ratio - 1).abs() > self.ppo.clip_ratio
        sums = ((ratio - 1 - ratio.log()).sum(), clipped.sum(), ratio.sum(), entropies.detach().sum())
        return loss, chosen.sum(), (*sums, torch.zeros_like(loss.detach()))

    def _unweighted(self, batch: PretrainingBatch) -> float:
        """Factor that makes the reported pretraining loss the mean over its tokens."""
        return batch.weight / self.ppo.ptx_coefficient


class ValueObjective:
    """The critic's objective: clipped regression of returns."""

    metric_names = ("value_clip_fraction",)

    def __init__(self, ppo: PPOConfig) -> None:
        self.ppo = ppo

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """See `Objective.forward`; the last stage returns values, float32 [B, S]."""
        return model(batch.tokens, batch.position_ids, None)

    def loss(self, output: Tensor, batch: EpisodeBatch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `Objective.loss`."""
        chosen = batch.loss_mask.bool()
        values, old = output[chosen], batch.values[chosen]
        losses = clipped_value_loss(values, old, batch.returns[chosen], self.ppo.clip_value)
        clipped = (values.detach() - old).abs() > self.ppo.clip_value
        return losses.sum(), chosen.sum(), (clipped.sum(),)


def unwrap(model: torch.nn.Module) -> GPT:
    """The GPT inside an engine's wrapper modules."""
    while not isinstance(model, GPT):
        model = model.module
    return model
