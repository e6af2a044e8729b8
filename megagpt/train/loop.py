"""The training loop, the same for every stage, engine and layout."""

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from megagpt.config.schema import Config
from megagpt.data.loader import TrainLoader
from megagpt.errors import TrainingDiverged
from megagpt.log import STARTED, progress
from megagpt.parallel.engine import Engine, StepResult
from megagpt.train.flops import device_peak_tflops, mfu
from megagpt.train.metrics import MetricsWriter
from megagpt.train.schedules import global_batch_size, learning_rate
from megagpt.train.signals import StopSignal
from megagpt.train.state import TrainState

log = logging.getLogger(__name__)


class Saver(Protocol):
    """What the loop asks of a checkpointer."""

    def poll(self, wait: bool = False) -> None:
        """Publish a save that a background thread has finished, or report its failure on every rank."""


@dataclass
class Trainer:
    """Trains until `optim.train_tokens`, a signal, or too many skipped steps."""

    config: Config
    engine: Engine
    loader: TrainLoader
    metrics: MetricsWriter
    saver: Saver
    save: Callable[[TrainState], None]
    """Writes a checkpoint; collective."""
    evaluate: Callable[[TrainState], dict[str, float]]
    """Measures the model on held-out data; collective."""
    state: TrainState = field(default_factory=TrainState)

    def fit(self) -> bool:
        """Run to the end and return True, or return False after a signal. The last step is saved either way."""
        optim, state = self.config.optim, self.state
        first_step, saved_step = state.step + 1, state.step
        with StopSignal() as stop, self._progress() as bar:
            while state.tokens < optim.train_tokens:
                self._step(bar)
                if state.step == first_step:
                    log.info("first step after %.1f s", time.perf_counter() - STARTED)
                self.saver.poll()
                stopping = stop.agreed()
                if stopping or _due(state.step, self.config.checkpoint.interval):
                    self.save(state)
                    saved_step = state.step
                if stopping:
                    break
                if _due(state.step, self.config.stage.eval_interval) and state.tokens < optim.train_tokens:
                    self._evaluate()
            finished = state.tokens >= optim.train_tokens
            if saved_step != state.step:
                self.save(state)
            self.saver.poll(wait=True)
        if not finished:
            log.info("stopped by a signal at step %d; the same command goes on from there", state.step)
        return finished

    def _step(self, bar: Any) -> None:
        optim, dims, state = self.config.optim, self.engine.dims, self.state
        started = time.perf_counter()
        replica_batch = self.config.parallel.micro_batch_size * dims.data_size
        multiple = replica_batch * (dims.pipeline_size if dims.virtual_size > 1 else 1)
        batch_size = global_batch_size(optim, state.tokens, multiple)
        tokens = batch_size * self.config.model.sequence_length
        lr = learning_rate(optim, state.tokens + tokens)
        batches = self.loader.micro_batches(state.samples, batch_size, dims.data_rank, dims.data_size)
        result = self.engine.train_step(batches, batch_size // replica_batch, lr)

        state.step += 1
        state.samples += batch_size
        state.tokens += tokens
        self._guard(result)
        seconds = time.perf_counter() - started
        speed = self._log(result, lr, batch_size, tokens / seconds, seconds)
        bar.update(min(tokens, bar.total - bar.n))
        bar.set_postfix(step=state.step, loss=f"{result.loss:.3f}", **speed)

    def _guard(self, result: StepResult) -> None:
        """Count a step that was skipped because of a non-finite loss or gradient; too many in a row end the run."""
        state, limit = self.state, self.config.optim.max_skipped_steps
        if result.applied:
            state.skipped_in_a_row = 0
            return
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        log.warning(
            "step %d skipped: loss %s, gradient norm %s (%d in a row, %d stop the run)",
            state.step,
            result.loss,
            result.grad_norm,
            state.skipped_in_a_row,
            limit,
        )
        if state.skipped_in_a_row >= limit:
            raise TrainingDiverged(
                f"the loss or gradient was not finite in {limit} steps in a row, up to step {state.step} "
                f"(optim.max_skipped_steps={limit}); none of them changed the model. Go on from an earlier checkpoint "
                f"with a lower optim.lr than {self.config.optim.lr:g}, or look at the data from sample "
                f"{state.samples} backwards"
            )

    def _log(self, result: StepResult, lr: float, batch_size: int, speed: float, seconds: float) -> dict[str, str]:
        state, dims = self.state, self.engine.dims
        logging_config = self.config.logging
        peak = logging_config.peak_tflops
        if peak is None and self.engine.device.type == "cuda":
            peak = device_peak_tflops(torch.cuda.get_device_name(), self.config.optim.precision)
        utilisation = mfu(self.config.model, speed, dims.world_size, peak)
        if state.step % logging_config.interval == 0 or not result.applied:
            self.metrics.log(
                step=state.step,
                tokens=state.tokens,
                samples=state.samples,
                loss=result.loss,
                **result.metrics,
                lr=lr,
                grad_norm=result.grad_norm,
                global_batch_size=batch_size,
                step_seconds=seconds,
                tokens_per_second=speed,
                mfu=utilisation,
                memory_gib=peak_memory_gib(self.engine.device),
                skipped_steps=state.skipped_steps,
            )
        return {} if utilisation is None else {"mfu": f"{utilisation:.1%}"}

    def _evaluate(self) -> None:
        values = self.evaluate(self.state)
        self.metrics.log(step=self.state.step, tokens=self.state.tokens, **values)
        described = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.info("step %d: %s", self.state.step, described)

    def _progress(self) -> Any:
        total = self.config.optim.train_tokens
        return progress(total, "tokens", self.config.run_name, initial=min(self.state.tokens, total))


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this process has held so far: of the GPU where there is one, else resident, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
