"""Tasks that several stages share."""

import torch

from megagpt.data.batch import Batch
from megagpt.model.layers import document_lengths


class LanguageModelTask:
    """Predict every next token: the sum of masked cross-entropies in nats, over the number of tokens that count."""

    metric_names: tuple[str, ...] = ()

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """See `Task.forward`; the last stage gives the loss of every token, float32 [B, S]."""
        mask = None if batch.document_ids is None else document_lengths(batch.document_ids)
        return model(batch.tokens, batch.position_ids, mask, labels=batch.labels)

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, tuple]:
        """See `Task.loss`."""
        return (output.float() * batch.loss_mask).sum(), batch.loss_mask.sum().int(), ()
