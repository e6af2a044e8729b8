"""Loss spikes: when a loss is one, where to go back to, and which samples to leave out.

The remedy is PaLM's (Chowdhery et al., arXiv 2204.02311, section 5.1): go on from a checkpoint before the spike without
the batches around it. All that decides is in `TrainState`, so that a run that stops on the way does the same.
"""

import math
from dataclasses import dataclass
from statistics import median

from megagpt.config.schema import ReliabilityConfig
from megagpt.errors import TrainingDiverged
from megagpt.train.state import TrainState


@dataclass(frozen=True)
class Spike:
    """A loss that jumped."""

    step: int
    loss: float
    usual: float
    """Median of the losses before, in nats."""
    window: tuple[int, int]
    """Global sample indices to leave out, from the first up to but without the second."""


class SpikeGuard:
    """Watches the losses of steps that were applied; does nothing where `reliability.spike_threshold` is 0."""

    def __init__(self, config: ReliabilityConfig) -> None:
        self.config = config

    def check(self, state: TrainState, first_sample: int, loss: float) -> Spike | None:
        """Judge the step that has led to `state`, which trained from `first_sample` on, and remember it."""
        config = self.config
        if not config.spike_threshold:
            return None
        usual = median(state.recent) if len(state.recent) == config.spike_history else math.inf
        if loss - usual > config.spike_threshold:
            batch_size = state.samples - first_sample
            start = first_sample - config.spike_rewind * batch_size
            return Spike(state.step, loss, usual, (max(start, 0), start + config.spike_skip * batch_size))
        state.recent = [*state.recent, loss][-config.spike_history :]
        return None

    def check_budget(self, state: TrainState, spike: Spike) -> None:
        """Raises TrainingDiverged when the run has gone back as often as it may."""
        if state.rollbacks >= self.config.max_rollbacks:
            raise TrainingDiverged(
                f"the loss of step {spike.step} is {spike.loss:.4f} where {spike.usual:.4f} is usual, a spike after "
                f"{state.rollbacks} others (reliability.max_rollbacks={self.config.max_rollbacks}). Go on from an "
                f"earlier checkpoint with a lower optim.lr, or look at samples {spike.window[0]} to "
                f"{spike.window[1] - 1}"
            )


def rolled_back(restored: TrainState, state: TrainState, spike: Spike) -> TrainState:
    """The counters to go on with: those of the checkpoint, and all windows that the run has left out so far."""
    restored.left_out = [*state.left_out, list(spike.window)]
    restored.rollbacks = state.rollbacks + 1
    return restored


def next_sample(state: TrainState, batch_size: int) -> int:
    """Where the next step's samples begin: behind every window to leave out that they would touch."""
    first = state.samples
    for start, stop in sorted(state.left_out):
        if first < stop and first + batch_size > start:
            first = stop
    return first
