"""Several parallel layouts over the same ranks, for models that work together but have their own process groups."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state

from megagpt.config.schema import ParallelConfig
from megagpt.data.batch import Batch
from megagpt.parallel import launch
from megagpt.parallel.engine import Engine, StepResult
from megagpt.parallel.shards import Shard


class Layout:
    """Megatron-Core's process groups of a layout.

    Megatron-Core supports one layout at a time, in global variables of its module `parallel_state`. A `Layout` stores
    its own values of these variables and sets them while it is active.
    """

    def __init__(self, parallel: ParallelConfig) -> None:
        """Create the groups, in addition to existing ones. Collective over all ranks."""
        before = _variables()
        parallel_state.destroy_model_parallel()  # this only resets the variables; it destroys no group
        launch.form_groups(parallel)
        self._variables = _variables()
        _set(before)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the layout that Megatron-Core uses inside the context."""
        before = _variables()
        _set(self._variables)
        try:
            yield
        finally:
            self._variables = _variables()  # schedules change some of them
            _set(before)


def _variables() -> dict[str, Any]:
    return {name: value for name, value in vars(parallel_state).items() if re.fullmatch("_[A-Z][A-Z_]+", name)}


def _set(variables: dict[str, Any]) -> None:
    vars(parallel_state).update(variables)


class Layouts:
    """The layouts of a job, each formed once."""

    def __init__(self, parallel: ParallelConfig) -> None:
        """`parallel` is the layout whose groups exist already, from `launch.initialize`."""
        self._formed: dict[tuple, Layout | None] = {_sizes(parallel): None}

    def build(self, parallel: ParallelConfig, make: Callable[[], Engine]) -> Engine:
        """The engine that `make` builds, in the layout `parallel`. Collective over all ranks."""
        sizes = _sizes(parallel)
        if sizes not in self._formed:
            self._formed[sizes] = Layout(parallel)
        layout = self._formed[sizes]
        return make() if layout is None else EngineInLayout(layout, make)


def _sizes(parallel: ParallelConfig) -> tuple[int, ...]:
    return parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.virtual_pipeline_size


class EngineInLayout:
    """Wraps an engine, so that each method runs in a given layout. Implements `megagpt.parallel.engine.Engine`."""

    def __init__(self, layout: Layout, make: Callable[[], Engine]) -> None:
        """`make` builds the engine."""
        self.layout = layout
        with layout.active():
            self.engine = make()
        self.dims, self.device = self.engine.dims, self.engine.device

    @property
    def modules(self) -> list[torch.nn.Module]:
        """See `Engine.modules`."""
        with self.layout.active():
            return self.engine.modules

    def train_step(self, batches: Iterator[Batch], num_micro_batches: int, lr: float) -> StepResult:
        """See `Engine.train_step`."""
        with self.layout.active():
            return self.engine.train_step(batches, num_micro_batches, lr)

    def evaluate(self, batches: Iterator[Batch], num_micro_batches: int) -> StepResult:
        """See `Engine.evaluate`."""
        with self.layout.active():
            return self.engine.evaluate(batches, num_micro_batches)

    def outputs(self, batches: Iterator[Batch], num_micro_batches: int, training: bool = False) -> list[torch.Tensor]:
        """See `Engine.outputs`."""
        with self.layout.active():
            return self.engine.outputs(batches, num_micro_batches, training)

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """See `Engine.shards`."""
        with self.layout.active():
            yield from list(self.engine.shards(for_saving))

    def post_load(self, optimizer_step: int) -> None:
        """See `Engine.post_load`."""
        with self.layout.active():
            self.engine.post_load(optimizer_step)

    def random_state(self) -> dict[str, torch.Tensor]:
        """See `Engine.random_state`."""
        return self.engine.random_state()

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        """See `Engine.set_random_state`."""
        self.engine.set_random_state(state)
