"""What the training loop asks of whatever executes its steps, in any layout, and what a stage gives in return."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from megagpt.data.batch import Batch
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.shards import Shard


class Objective(Protocol):
    """What a stage trains: how a batch goes through the model, and the loss of what comes out."""

    metric_names: tuple[str, ...]
    """Further sums that `loss` returns, in order."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Pass `batch` through this rank's part of the model.

        Returns the last stage's output, in whatever shape `loss` expects, or hidden states [S, B, H] elsewhere.
        """

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Loss of the last stage's output.

        Returns the sum of the loss (scalar, with gradient), the number of things summed over (integer scalar), and
        further sums to report. The engine divides by the count over all micro-batches and replicas, so neither
        accumulation nor unequal masks change the result.
        """


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank."""

    loss: float
    """Mean loss over the global batch."""
    count: int
    """What the loss was averaged over (tokens, for language modelling)."""
    grad_norm: float
    """Global gradient norm before clipping."""
    applied: bool
    """False if the loss or a gradient was not finite; then no parameter and no moment has changed."""
    metrics: dict[str, float]
    """Means of the objective's further sums."""
    stop: bool = False
    """Whether any rank wished the run to stop, see `Engine.wishes_stop`."""


class Engine(Protocol):
    """Executes training and evaluation steps of a objective on this rank's part of the model."""

    dims: ParallelDims
    device: torch.device
    modules: list[torch.nn.Module]
    """This rank's chunks of the model, in order. Asking for them is collective over replicas, which may have to
    exchange what they have updated; a list that is kept may be behind after a step."""
    wishes_stop: Callable[[], bool]
    """Asked in every step: whether this rank wishes the run to stop. It rides on the sums that are reduced anyway."""

    def train_step(self, batches: Iterator[Batch], num_micro_batches: int, lr: float) -> StepResult:
        """Accumulate gradients over `num_micro_batches` and update the parameters. Collective over all ranks."""

    def evaluate(self, batches: Iterator[Batch], num_micro_batches: int) -> StepResult:
        """Mean loss over `num_micro_batches` a replica, without gradients. Collective over all ranks."""

    def outputs(self, batches: Iterator[Batch], num_micro_batches: int, training: bool = False) -> list[torch.Tensor]:
        """What `Objective.forward` gives on the last stage for each micro-batch, without gradients.

        Float32, [B, S] for numbers of tokens and [B, H] for vectors of texts. training: with dropout. On every rank;
        collective over the ranks of a replica. Between several pipeline stages, the micro-batches have one shape.
        """

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """This rank's shards of parameters and optimizer state: all of them, or those it has to save."""

    def post_load(self, optimizer_step: int) -> None:
        """To be called after the tensors of `shards` were filled in place; 0 steps for weights alone."""

    def random_state(self) -> dict[str, torch.Tensor]:
        """State of this rank's random streams, uint8 tensors by name."""

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `random_state` returned."""
