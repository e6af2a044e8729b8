"""A micro-batch of the model's input, and the protocol of the loaders that make them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch.cuda import is_available as has_gpu

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
    """int64 [B, S]: number of each token's document, where a sample holds several documents. Attention must not cross
    from one document to another. None: attention sees the whole sample."""

    document_lengths: torch.Tensor | None = None
    """int32 [N + 1], with `document_ids`: the cumulative lengths of the N documents over the rows of the batch. They
    are counted when the batch is made, on the CPU: counting them on a GPU would make the host wait for it."""

    def __post_init__(self) -> None:
        if self.document_ids is not None and self.document_lengths is None:
            object.__setattr__(self, "document_lengths", cumulative_lengths(self.document_ids))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: send(v, device) for name, v in values.items() if isinstance(v, torch.Tensor)})


def cumulative_lengths(document_ids: torch.Tensor) -> torch.Tensor:
    """int32 [N + 1]: first tokens of the N documents of packed rows, row by row, then the number of all tokens.

    document_ids: int64 [B, S], the number of every token's document. Every row begins a document.
    """
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.cat((begins.flatten().nonzero()[:, 0], torch.tensor([begins.numel()], device=begins.device))).int()


def send(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`values` on `device`. A copy from CPU to GPU goes through pinned memory, and the host does not wait for it."""
    if has_gpu() and values.device.type == "cpu" and torch.device(device).type != "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class HeldOut:
    """`count` batches of held-out samples. Each is made when it is read, since memory may not hold all of them."""

    def __init__(self, count: int, make: Callable[[int], Batch]) -> None:
        """make: returns batch number 0 <= n < `count`."""
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return map(self._make, range(self._count))


class Loader(Protocol):
    """All batches of a run. A batch is a function of the seed and of sample numbers, in every layout."""

    tokenizer: Tokenizer
    sample_tokens: int
    """Tokens of a training sample, padding included."""

    def micro_batches(
        self, first_sample: int, global_batch_size: int, data_parallel_rank: int, data_parallel_size: int
    ) -> Iterator[Batch]:
        """One rank's micro-batches of the step that trains on samples first_sample .. + global_batch_size - 1.

        Micro-batch m has samples first_sample + (m * data_parallel_size + data_parallel_rank) * micro_batch_size and
        the following.
        """

    def evaluation_batches(
        self, split: Split, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> HeldOut:
        """One rank's share of the held-out samples of `split`. All ranks get the same number of batches.

        max_tokens: upper limit of the tokens of all ranks together; None: all
        """

    def evaluation_bytes(self, split: Split, max_tokens: int | None, part: int = 0, parts: int = 1) -> int:
        """Number of UTF-8 bytes of the text that `evaluation_batches` predicts on all ranks together.

        `parts` ranks share the counting, because the text may be gigabytes; this call counts number `part` of them, so
        the sum over all parts is the number of the whole text.
        """
