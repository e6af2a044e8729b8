"""A micro-batch of the model's input, and the protocol of the loaders that make them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch

from megagpt.data.packed import Split
from megagpt.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batch:
    """B sequences of S tokens, and the tokens to predict. Training stages may add fields."""

    tokens: torch.Tensor
    """int64 [B, S]: the input."""
    labels: torch.Tensor
    """int64 [B, S]: the token that follows each input token."""
    loss_mask: torch.Tensor
    """float32 [B, S]: 1 where the prediction counts in the loss, else 0."""
    position_ids: torch.Tensor
    """int64 [B, S]: position of each token, from 0."""
    document_ids: torch.Tensor | None = None
    """int64 [B, S], where samples hold several documents that are kept apart: attention must not cross from one value
    to another."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, torch.Tensor)})


class Loader(Protocol):
    """All batches of a run. A batch is a function of the seed and of sample numbers, in every layout."""

    tokenizer: Tokenizer
    sample_tokens: int
    """Tokens that a training sample counts for, padding included."""

    def micro_batches(
        self, first_sample: int, global_batch_size: int, data_parallel_rank: int, data_parallel_size: int
    ) -> Iterator[Batch]:
        """One rank's micro-batches of the step that trains on samples first_sample .. + global_batch_size - 1.

        Micro-batch m has samples first_sample + (m * data_parallel_size + data_parallel_rank) * micro_batch_size and
        the following.
        """

    def evaluation_batches(
        self, split: Split, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> Iterator[Batch]:
        """One rank's share of the held-out samples of `split`, as many batches on every rank."""

    def evaluation_bytes(self, split: Split, max_tokens: int | None) -> int:
        """Number of UTF-8 bytes of the text that `evaluation_batches` predicts on all ranks together."""
