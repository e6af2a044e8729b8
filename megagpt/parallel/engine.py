"""Interfaces between the training loop, the engines that execute its steps in any layout, and a stage's objective."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from megagpt.data.batch import Batch
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.shards import Shard


class Objective(Protocol):
    """What a stage optimises: the forward pass of a batch, and the loss of its output."""

    metric_names: tuple[str, ...]
    """Names of the further sums that `loss` returns, in order."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Pass `batch` through this rank's part of the model.

        Returns on the last pipeline stage the output in the shape that `loss` expects, else hidden states [S, B, H].
        """

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
        """Loss of the last stage's output.

        Returns the sum of the loss (scalar, with gradient), the number of summands (integer scalar, such as the number
        of tokens), and further sums to report. The engine divides by the total count over all micro-batches and
        replicas, so that neither gradient accumulation nor unequal masks change the result.
        """


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, the same on every rank."""

    loss: float
    """Mean loss over the global batch."""
    count: int
    """Number of summands that the loss was averaged over (tokens, for language modelling)."""
    grad_norm: float
    """Global gradient norm before clipping."""
    applied: bool
    """Whether the update was made; False if the loss or a gradient was not finite, and then nothing has changed."""
    metrics: dict[str, float]
    """Means of the objective's further sums."""
    stop: bool = False
    """Whether any rank wished the run to stop, see `Engine.wishes_stop`."""


class Engine(Protocol):
    """Executes training and evaluation steps of an objective on this rank's part of the model."""

    dims: ParallelDims
    device: torch.device
    modules: list[torch.nn.Module]
    """This rank's chunks of the model, in order. Reading this is collective over replicas, because they may have to
    exchange updated parameters. Read it again after a step: a list from before may hold old parameters."""
    wishes_stop: Callable[[], bool]
    """Called in every step: whether this rank wishes the run to stop. The answer is sent with the reduced sums."""

    def train_step(self, batches: Iterator[Batch], num_micro_batches: int, lr: float) -> StepResult:
        """Accumulate gradients over `num_micro_batches` and update the parameters. Collective over all ranks."""

    def evaluate(self, batches: Iterator[Batch], num_micro_batches: int) -> StepResult:
        """Mean loss over `num_micro_batches` of each replica, without gradients. Collective over all ranks."""

    def outputs(self, batches: Iterator[Batch], num_micro_batches: int, training: bool = False) -> list[torch.Tensor]:
        """The last stage's output of `Objective.forward` for each micro-batch, without gradients, on every rank.

        Float32: [B, S] for one number per token, [B, H] for one vector per text. training: whether dropout is on. With
        several pipeline stages, all micro-batches must have the same shape. Collective over the ranks of a replica.
        """

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """This rank's shards of parameters and optimizer state: all, or with `for_saving` only those it must save."""

    def post_load(self, optimizer_step: int) -> None:
        """Call this after the tensors of `shards` were filled in place.

        optimizer_step: updates that the loaded optimizer state has made; 0 if only weights were loaded.
        """

    def random_state(self) -> dict[str, torch.Tensor]:
        """State of this rank's random streams, uint8 tensors by name."""

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore a state that `random_state` returned."""
