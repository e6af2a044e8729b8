"""The objectives of pretraining, fine-tuning and the reward model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.data.batch import Batch
from megagpt.data.ranked_loader import RankedBatch


class LanguageModelObjective:
    """Predict the next token: the mean cross-entropy, in nats, over the tokens that the loss mask keeps."""

    metric_names: tuple[str, ...] = ()

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """See `Objective.forward`; the last stage returns the loss of every token, float32 [B, S]."""
        mask = None if batch.document_ids is None else batch.document_lengths
        return model(batch.tokens, batch.position_ids, mask, labels=batch.labels)

    def loss(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor, tuple]:
        """See `Objective.loss`."""
        return (output.float() * batch.loss_mask).sum(), batch.loss_mask.sum().int(), ()


class RewardObjective:
    """Compare all responses to a prompt: the mean of `ranking_loss` over prompts."""

    metric_names = ("accuracy", "margin")

    def forward(self, model: torch.nn.Module, batch: RankedBatch) -> Tensor:
        """See `Objective.forward`; the last stage returns one value per token, float32 [R, S]."""
        return model(batch.tokens, batch.position_ids, None)

    def loss(self, output: Tensor, batch: RankedBatch) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `Objective.loss`; the count is the number of prompts."""
        loss, count, *metrics = ranking_loss(batch.scores(output), batch.ranks, batch.prompts, batch.loss_mask.any(1))
        return loss, count, tuple(metrics)


def ranking_loss(
    scores: Tensor, ranks: Tensor, prompts: Tensor, present: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of a reward model (arXiv 2203.02155), as four sums over prompts.

    The sums are: the losses; the number of prompts that have a loss; the shares of pairs in the right order; the mean
    margins. A prompt's loss is the mean of -log sigmoid(r_w - r_l) over its pairs of a better response w and a worse
    response l; K responses without ties have C(K, 2) pairs. Ties are no pairs, and prompts with only ties do not count.

    scores: float32 [R]. ranks, prompts: int64 [R], see `RankedBatch`. present: bool [R], False for padding.
    """
    same = (prompts[:, None] == prompts) & present[:, None] & present
    better = same & (ranks[:, None] < ranks)
    pairs_of_prompt = same.float() @ better.sum(1).float()
    weights = better / pairs_of_prompt.clamp(min=1)[:, None]
    margins = scores[:, None] - scores
    loss = (F.softplus(-margins) * weights).sum()
    with torch.no_grad():
        count = weights.sum().round().int()  # the weights of a prompt sum to 1
        accuracy = ((margins > 0) * weights).sum()
        return loss, count, accuracy, (margins * weights).sum()
