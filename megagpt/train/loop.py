"""The training loop, the same for every stage, engine and layout."""

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Loader
from megagpt.errors import ConfigError, TrainingDiverged
from megagpt.log import STARTED, progress
from megagpt.parallel.engine import Engine, StepResult
from megagpt.parallel.replicas import Replicas
from megagpt.train.attempts import Attempts
from megagpt.train.flops import device_peak_tflops, mfu
from megagpt.train.metrics import MetricsWriter
from megagpt.train.schedules import global_batch_size, learning_rate
from megagpt.train.signals import StopSignal
from megagpt.train.spikes import Spike, SpikeGuard, next_sample, rolled_back
from megagpt.train.state import TrainState
from megagpt.train.stragglers import Stragglers
from megagpt.train.watchdog import Watchdog

log = logging.getLogger(__name__)

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "kl")
"""What names of figures end with of which the lowest is best."""


class Saver(Protocol):
    """What the loop asks of a checkpointer."""

    def poll(self, wait: bool = False) -> None:
        """Publish a save that a background thread has finished, or report its failure on every rank."""


@dataclass
class Trainer:
    """Trains until `optim.train_tokens`, a signal, or too many skipped steps."""

    config: Config
    engine: Engine
    loader: Loader
    metrics: MetricsWriter
    saver: Saver
    save: Callable[[TrainState], None]
    """Writes a checkpoint; collective."""
    evaluate: Callable[[TrainState], dict[str, float]]
    """Measures the model on held-out data; collective."""
    rewind: Callable[[int], TrainState]
    """Fills the engine from the newest checkpoint of at most a step, and forgets later ones; collective."""
    watchdog: Watchdog
    attempts: Attempts
    state: TrainState = field(default_factory=TrainState)

    def __post_init__(self) -> None:
        reliability = self.config.reliability
        self.spikes = SpikeGuard(reliability)
        self.stragglers = Stragglers(reliability, self.engine.dims, self.engine.modules)
        self.replicas = Replicas(self.engine.shards(for_saving=False)) if reliability.replica_interval else None

    def fit(self) -> bool:
        """Run to the end and return True, or return False after a signal. The last step is saved either way."""
        train_tokens, interval = self.config.optim.train_tokens, self.config.checkpoint.interval
        self._saved_step = self.state.step
        first = True
        with StopSignal() as stop, self.watchdog, self._progress() as bar:
            while self.state.tokens < train_tokens:
                spike = self._step(bar)
                if first:
                    first = False
                    self.watchdog.first_step_done()
                    log.info("first step after %.1f s", time.perf_counter() - STARTED)
                if spike:
                    self._roll_back(spike, bar)
                    continue  # the step that the run is back at was evaluated and saved when it was taken
                self._compare_ranks()
                self.saver.poll()
                stopping = stop.agreed()
                if self._evaluates(stopping):
                    self._evaluate()
                if stopping or _due(self.state.step, interval) or self.state.best_step == self.state.step:
                    self._save()
                if stopping:
                    break
            self._save()
            with self.watchdog.within("save"):
                self.saver.poll(wait=True)
        self.attempts.end()
        finished = self.state.tokens >= train_tokens
        if not finished:
            log.info("stopped by a signal at step %d; the same command goes on from there", self.state.step)
        return finished

    def _step(self, bar: Any) -> Spike | None:
        optim, dims, state = self.config.optim, self.engine.dims, self.state
        started = time.perf_counter()
        replica_batch = self.config.parallel.micro_batch_size * dims.data_size
        multiple = replica_batch * (dims.pipeline_size if dims.virtual_size > 1 else 1)
        batch_size = global_batch_size(optim, state.tokens, multiple)
        tokens = batch_size * self.loader.sample_tokens
        lr = learning_rate(optim, state.tokens + tokens)
        first_sample = next_sample(state, batch_size)
        self.watchdog.step = state.step + 1
        self.attempts.begin(state.step + 1, first_sample, batch_size)
        batches = self.loader.micro_batches(first_sample, batch_size, dims.data_rank, dims.data_size)
        result = self.engine.train_step(self.watchdog.batches(batches), batch_size // replica_batch, lr)

        state.step += 1
        state.samples = first_sample + batch_size
        state.tokens += tokens
        self._guard(result)
        seconds = time.perf_counter() - started
        speed = self._log(result, lr, batch_size, tokens / seconds, seconds)
        bar.update(min(tokens, bar.total - bar.n))
        bar.set_postfix(step=state.step, loss=f"{result.loss:.3f}", **speed)
        return self.spikes.check(state, first_sample, result.loss) if result.applied else None

    def _roll_back(self, spike: Spike, bar: Any) -> None:
        """Go on from a checkpoint before the spike, without the samples around it."""
        self.spikes.check_budget(self.state, spike)
        with self.watchdog.within("save"):
            restored = self.rewind(spike.step - 1 - self.config.reliability.spike_rewind)
        if self.engine.dims.rank == 0:
            log.warning(
                "step %d: loss %.4f where %.4f is usual. Going back to step %d; samples %d to %d are left out",
                *(spike.step, spike.loss, spike.usual, restored.step, spike.window[0], spike.window[1] - 1),
            )
        self.state = rolled_back(restored, self.state, spike)
        self._saved_step = restored.step
        self.metrics.resume(restored.step)
        bar.update(min(restored.tokens, bar.total) - bar.n)

    def _compare_ranks(self) -> None:
        """Now and then look for silent damage and for slow ranks."""
        step = self.state.step
        if self.replicas and step % self.config.reliability.replica_interval == 0:
            self.replicas.check(self.engine.shards(for_saving=False))
        self.stragglers.check(step)

    def _save(self) -> None:
        """Save the step unless it is saved already; never what replicas do not agree on."""
        if self._saved_step == self.state.step:
            return
        with self.watchdog.within("save"):
            if self.replicas:
                self.replicas.check(self.engine.shards(for_saving=False))
            self.save(self.state)
        self._saved_step = self.state.step

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

    def _evaluates(self, stopping: bool) -> bool:
        """Whether the step is one to be evaluated. One that ends the run, or this part of it, has no need to, unless a
        best checkpoint is chosen, which may be the last and must not depend on where a run was interrupted."""
        last = self.state.tokens >= self.config.optim.train_tokens
        due = _due(self.state.step, self.config.stage.eval_interval)
        if self.config.checkpoint.best_metric is not None:
            return due or last
        return due and not stopping and not last

    def _evaluate(self) -> None:
        with self.watchdog.within("evaluation"):
            values = self.evaluate(self.state)
        self.stragglers.forget()
        self.metrics.log(step=self.state.step, tokens=self.state.tokens, **values)
        self._consider(values)
        described = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.info("step %d: %s", self.state.step, described)

    def _consider(self, values: dict[str, float]) -> None:
        """Say whether this step is the best so far. Every rank has the same values, and so comes to the same."""
        metric, mode = self.config.checkpoint.best_metric, self.config.checkpoint.best_mode
        if metric is None:
            return
        if metric not in values:
            raise ConfigError(
                f"checkpoint.best_metric ({metric}) is not among what this run's evaluations give: {', '.join(values)}"
            )
        self.state.consider(
            metric, values[metric], mode == "min" or (mode is None and metric.endswith(LOWER_IS_BETTER))
        )

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
