"""What one micro-batch of the model's input looks like."""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Batch:
    """Token sequences and what is to be predicted; B sequences of S tokens."""

    tokens: torch.Tensor
    """int64 [B, S]: the input."""
    labels: torch.Tensor
    """int64 [B, S]: the token that follows each input token."""
    loss_mask: torch.Tensor
    """float32 [B, S]: 1 where the prediction counts in the loss, else 0."""
    position_ids: torch.Tensor
    """int64 [B, S]: position of each token, from 0."""
    document_ids: torch.Tensor | None = None
    """int64 [B, S], only with data.isolate_documents: attention must not cross from one value to another."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Batch(**{name: value if value is None else value.to(device) for name, value in values.items()})
