"""The parts of a training loop that all stages share: schedules, logs, evaluations, checkpoints, faults and signals.

The loop itself belongs to the stage (`Stage.fit`), which executes each step between `begin_step` and `end_step`:

    with trainer.running():
        while trainer.unfinished:
            step = trainer.begin_step()
            trainer.end_step(step, engine.train_step(...))
"""

import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from megagpt.config.nearest import nearest
from megagpt.config.schema import Config
from megagpt.errors import ConfigError, TrainingDiverged
from megagpt.log import STARTED, progress
from megagpt.parallel.engine import Engine, StepResult
from megagpt.parallel.replicas import Replicas
from megagpt.parallel.shards import Shard
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
"""Endings of the names of metrics whose lowest value is the best."""


class Stage(Protocol):
    """Interface of a training stage: its data, its models, its objective and its evaluation. See `megagpt/stages`."""

    config: Config
    """The configuration of the run; the stage may have completed its schedule (`optim.train_epochs`)."""
    engine: Engine
    """The engine of the model that learns."""
    engines: list[Engine]
    """All engines; the watchdog observes their models."""
    sample_tokens: int
    """Number of tokens that a training sample counts as, padding included."""
    evaluation_metrics: list[str]
    """Names of the metrics that `evaluate` returns for the opened data."""
    sources: dict[str, Path]
    """{field: checkpoint of another run} for the models that `build` loaded."""

    def build(self) -> None:
        """Build the models; the data has been opened by the constructor. Collective."""

    def begin(self, state: TrainState) -> None:
        """Make the measurements that come before the first step of a run. Collective."""

    def fit(self, trainer: "Trainer") -> None:
        """Train until `trainer` is finished or stopped. Collective."""

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Metrics of the model on held-out data, the same on every rank. Collective."""

    def ask_tasks(self, state: TrainState) -> dict[str, float]:
        """Metrics of the in-context tasks in `stage.tasks`, the same on every rank. Collective."""

    def finish(self, state: TrainState) -> None:
        """Measure the trained model and show samples. Collective."""

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """All tensors of a checkpoint, see `Engine.shards`."""

    def post_load(self, optimizer_step: int) -> None:
        """Call this after `shards` were filled, see `Engine.post_load`."""

    def checkpoint_extras(self, state: TrainState) -> dict[str, Any]:
        """JSON values for the manifest of this state's checkpoint. Collective."""


class Checkpoints(Protocol):
    """Interface of a run's checkpoints. Every method is collective."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint."""

    def name_best(self, state: TrainState) -> None:
        """Mark the checkpoint of this state, which has been saved, as the best one."""

    def rewind(self, step: int) -> TrainState:
        """Load the newest checkpoint up to `step` into the stage, and delete later ones."""

    def poll(self, wait: bool = False) -> None:
        """Publish a save that a background thread has finished, or raise its error on every rank."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, as planned by the schedules."""

    number: int
    """Number of the step, counted from 1."""
    first_sample: int
    """Global index of its first sample."""
    batch_size: int
    """Number of samples of all replicas together."""
    num_micro_batches: int
    """Number of micro-batches of each replica."""
    tokens: int
    """Number of tokens of all samples, padding included."""
    lr: float
    """Learning rate."""
    started: float
    """Start of the step, from `time.perf_counter`."""


class Trainer:
    """Trains a stage until `optim.train_tokens`, a signal, or too many skipped steps."""

    def __init__(
        self,
        *,
        stage: Stage,
        checkpoints: Checkpoints,
        metrics: MetricsWriter,
        watchdog: Watchdog,
        attempts: Attempts,
        state: TrainState,
    ) -> None:
        """state: counters of the run so far. Collective."""
        self.stage, self.checkpoints, self.metrics = stage, checkpoints, metrics
        self.watchdog, self.attempts, self.state = watchdog, attempts, state
        self.config, self.engine = stage.config, stage.engine
        reliability = self.config.reliability
        self.spikes = SpikeGuard(reliability) if reliability.spike_threshold else None
        self.stragglers = None
        if reliability.straggler_interval and self.engine.dims.world_size > 1:
            self.stragglers = Stragglers(reliability, self.engine.dims, self.engine.modules)
        self.replicas = Replicas(stage.shards(for_saving=False)) if reliability.replica_interval else None
        self._saved_step = state.step
        self._steps_taken = 0
        self._stopping = False

    @property
    def finished(self) -> bool:
        """Whether the run has trained on `optim.train_tokens`."""
        return self.state.tokens >= self.config.optim.train_tokens

    @property
    def unfinished(self) -> bool:
        """Whether to take another step: the run is not finished, and no signal has asked it to stop."""
        return not self.finished and not self._stopping

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch ranks and signals while a stage trains; at the end, wait until the last checkpoint is on disk."""
        with StopSignal() as signal, self.watchdog, self._progress() as self._bar:
            self.engine.wishes_stop = signal.was_received
            self._evaluate_what_was_missed()
            yield
            with self.watchdog.within("save"):
                self.checkpoints.poll(wait=True)
        self.attempts.end()
        if not self.finished:
            log.info("stopped by a signal at step %d; the same command goes on from there", self.state.step)

    def begin_step(self) -> Step:
        """The next step: its samples, its batch size and its learning rate."""
        optim, dims, state = self.config.optim, self.engine.dims, self.state
        replica_batch = self.config.parallel.micro_batch_size * dims.data_size
        multiple = replica_batch * (dims.pipeline_size if dims.virtual_size > 1 else 1)
        batch_size = global_batch_size(optim, state.tokens, multiple)
        tokens = batch_size * self.stage.sample_tokens
        step = Step(
            number=state.step + 1,
            first_sample=next_sample(state, batch_size) if state.left_out else state.samples,
            batch_size=batch_size,
            num_micro_batches=batch_size // replica_batch,
            tokens=tokens,
            lr=learning_rate(optim, state.tokens + tokens),
            started=time.perf_counter(),
        )
        self.watchdog.progress.step = step.number
        self.attempts.begin(step.number, step.first_sample, batch_size)
        return step

    def end_step(self, step: Step, result: StepResult) -> None:
        """Count and log the step; then, if due, go back from a loss spike, save, evaluate, ask tasks, or stop."""
        state = self.state
        state.step = step.number
        state.samples = step.first_sample + step.batch_size
        state.tokens += step.tokens
        self._guard(result)
        self._log(step, result)
        self._steps_taken += 1
        if self._steps_taken == 1:
            self.watchdog.first_step_done()
            log.info("first step after %.1f s", time.perf_counter() - STARTED)
        if self.spikes and result.applied and (spike := self.spikes.check(state, step.first_sample, result.loss)):
            self._roll_back(spike)
            return  # the run is now at an earlier step, which has been saved already
        self._compare_ranks()
        if self.config.checkpoint.asynchronous:
            self.checkpoints.poll()
        self._stopping = result.stop
        if self._stopping or self.finished or _due(state.step, self.config.checkpoint.interval):
            self._save()  # before an evaluation, which may fail
        if self._evaluation_is_due():
            self._evaluate()
        if self._tasks_are_due():
            self._ask_tasks()

    def _roll_back(self, spike: Spike) -> None:
        """Continue from a checkpoint before the spike, without the samples around it."""
        self.spikes.check_budget(self.state, spike)
        with self.watchdog.within("save"):
            restored = self.checkpoints.rewind(spike.step - 1 - self.config.reliability.spike_rewind)
        if self.engine.dims.rank == 0:
            log.warning(
                "step %d: loss %.4f where %.4f is usual. Going back to step %d; samples %d to %d are left out",
                spike.step,
                spike.loss,
                spike.usual,
                restored.step,
                spike.window[0],
                spike.window[1] - 1,
            )
        self.state = rolled_back(restored, self.state, spike)
        self._saved_step = restored.step
        self.metrics.resume(restored.step)
        self._bar.update(min(restored.tokens, self._bar.total) - self._bar.n)
        self._evaluate_what_was_missed()

    def _compare_ranks(self) -> None:
        """Look for silent damage and for slow ranks, at their intervals."""
        step = self.state.step
        if self.replicas and step % self.config.reliability.replica_interval == 0:
            self.replicas.check(self.stage.shards(for_saving=False))
        if self.stragglers and step % self.config.reliability.straggler_interval == 0:
            self.stragglers.check(step)

    def _save(self) -> None:
        """Save the step unless it is saved already. Replicas are compared first, so that no damage is saved."""
        if self._saved_step == self.state.step:
            return
        with self.watchdog.within("save"):
            if self.replicas:
                self.replicas.check(self.stage.shards(for_saving=False))
            self.checkpoints.save(self.state)
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
                f"(optim.max_skipped_steps={limit}); none of them changed the model. Continue from an earlier "
                f"checkpoint with a lower optim.lr than {self.config.optim.lr:g}, or look at the data from sample "
                f"{state.samples} backwards"
            )

    def _log(self, step: Step, result: StepResult) -> None:
        state, dims, logging_config = self.state, self.engine.dims, self.config.logging
        seconds = time.perf_counter() - step.started
        speed = step.tokens / seconds
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
                lr=step.lr,
                grad_norm=result.grad_norm,
                global_batch_size=step.batch_size,
                step_seconds=seconds,
                tokens_per_second=speed,
                mfu=utilisation,
                memory_gib=peak_memory_gib(self.engine.device),
                skipped_steps=state.skipped_steps,
            )
        self._bar.update(min(step.tokens, self._bar.total - self._bar.n))
        shown = {} if utilisation is None else {"mfu": f"{utilisation:.1%}"}
        self._bar.set_postfix(refresh=False, step=state.step, loss=f"{result.loss:.3f}", **shown)

    def _evaluation_is_due(self) -> bool:
        """Whether to evaluate this step.

        The last step of the run is not evaluated here, because the stage evaluates at the end. But if a best checkpoint
        is chosen, every step that may be the best is evaluated: the choice must not depend on interruptions of the run.
        """
        if self.config.checkpoint.best_metric is not None:
            return may_be_best(self.config, self.state)
        return _due(self.state.step, self.config.stage.eval_interval) and self.unfinished

    def _evaluate(self, again: bool = False) -> None:
        """Evaluate the step. again: whether it may have been evaluated and logged before an interruption of the run."""
        with self.watchdog.within("evaluation"):
            values = self.stage.evaluate(self.state)
        self._log_held_out(values, again)
        self._consider(values)

    def _evaluate_what_was_missed(self) -> None:
        """Evaluate the step that a run resumes from, if it may be the best: it was saved before its evaluation."""
        state = self.state
        if state.step and may_be_best(self.config, state) and state.best_step != state.step:
            self._evaluate(again=True)

    def _tasks_are_due(self) -> bool:
        """Whether to ask the tasks now: at their interval, unless the run stops by a signal, and at the end."""
        tasks = self.config.stage.tasks
        due = _due(self.state.step, tasks.every) and not self._stopping
        return bool(tasks.names) and (due or self.finished)

    def _ask_tasks(self) -> None:
        with self.watchdog.within("tasks"):
            values = self.stage.ask_tasks(self.state)
        self._log_held_out(values)

    def _log_held_out(self, values: dict[str, float], again: bool = False) -> None:
        """Log the step's evaluation, unless `again` is set and its metrics are logged already."""
        if not (again and self.metrics.holds(self.state.step, values)):
            self.metrics.log(step=self.state.step, tokens=self.state.tokens, **values)
        described = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.info("step %d: %s", self.state.step, described)

    def _consider(self, values: dict[str, float]) -> None:
        """Mark this step's checkpoint as the best if it is. All ranks have the same values and decide the same."""
        metric, mode = self.config.checkpoint.best_metric, self.config.checkpoint.best_mode
        if metric is None:
            return
        lowest = mode == "min" or (mode is None and metric.endswith(LOWER_IS_BETTER))
        self.state.consider(metric, values[metric], lowest=lowest)
        if self.state.best_step == self.state.step:
            self._save()
            self.checkpoints.name_best(self.state)

    def _progress(self) -> Any:
        total = self.config.optim.train_tokens
        return progress(total, "tokens", self.config.run_name, initial=min(self.state.tokens, total))


def check_best_metric(stage: Stage) -> None:
    """Raises ConfigError if the stage's evaluations do not give the metric `checkpoint.best_metric`."""
    metric, given = stage.config.checkpoint.best_metric, stage.evaluation_metrics
    if metric is None or metric in given:
        return
    if not given:
        raise ConfigError(
            f"checkpoint.best_metric ({metric}) is measured on held-out data, of which this run has none: give"
            " data.split a validation share, or set best_metric=null"
        )
    like = nearest(metric, given)
    hint = f"did you mean {like}?" if like else f"they give {', '.join(given)}"
    raise ConfigError(f"checkpoint.best_metric ({metric}) is not among what this run's evaluations give; {hint}")


def may_be_best(config: Config, state: TrainState) -> bool:
    """Whether a best checkpoint is chosen and this step takes part in the choice."""
    finished = state.tokens >= config.optim.train_tokens
    return config.checkpoint.best_metric is not None and (finished or _due(state.step, config.stage.eval_interval))


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far in GiB: memory allocated on the GPU if there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
