"""What a run saves, and what it starts from: its own newest checkpoint, another run's weights, or nothing."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from megagpt.checkpoint import Checkpointer, read_manifest
from megagpt.config.load import from_saved, to_dict
from megagpt.config.schema import Config, Schedule
from megagpt.errors import ConfigError, TrainingDiverged
from megagpt.stages.weights import load_weights
from megagpt.train.state import TrainState
from megagpt.train.trainer import Stage

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "model.name",
    "model.hidden_dropout",
    "model.attention_dropout",
    "embed.scored_pairs",
    "embed.candidates",
)
"""Fields among these sections that change neither what the weights mean nor the samples."""

MEASURED_BY = ("scored_pairs", "candidates")
"""Fields of `embed` on which its metrics depend."""

CHANGES_SAMPLES = ("seed", "data.", "model.sequence_length", "stage.name")
"""Fields on which the order of training samples depends; a run that has begun keeps them."""

CHANGES_EMBEDDING = ("embed.", "optim.global_batch_size")
"""What a run of stage embed keeps besides: its batches are drawn as a whole, and its vectors mean what it says."""

NOT_WORTH_SAYING = ("logging.", "checkpoint.", "reliability.", "runs_dir", "run_name")


class RunCheckpoints:
    """The checkpoints of a run: tensors of its stage, its counters, and each rank's random state.

    In the layout that saved it, a run goes on bit for bit; in another one the random streams (of dropout) start anew.
    """

    def __init__(self, stage: Stage, checkpointer: Checkpointer) -> None:
        self.stage, self.checkpointer, self.config = stage, checkpointer, stage.config

    def restore(self) -> TrainState:
        """Fill the stage from where the run stands and return its counters. Collective.

        Raises ConfigError when a field changed that a run must keep, CheckpointError when no checkpoint is valid.
        """
        config, newest = self.config, self.checkpointer.find_newest()
        if newest is None:
            if config.checkpoint.load:
                load_weights(config, self.stage.engine)
                self.stage.post_load(0)
            return TrainState()
        if not config.checkpoint.resume:
            raise ConfigError(
                f"{newest.parent} has checkpoints, but checkpoint.resume is false: give the new run another run_name "
                f"than {config.run_name}, or move its folder away"
            )
        # Through the schema, so that a key which is newer than the run has its default, as the run had without it.
        saved = from_saved(read_manifest(newest)["config"])
        _compare(to_dict(with_lengths(saved)), to_dict(with_lengths(config)), newest)
        state = self._fill(newest)
        log.info("resumed at step %d (%d tokens) from %s", state.step, state.tokens, newest)
        return state

    def save(self, state: TrainState) -> None:
        """Write a checkpoint. Collective."""
        manifest = {"run": self.config.run_name, "config": to_dict(self.config), "layout": self._layout()}
        self.checkpointer.save(
            state.step,
            self.stage.shards(for_saving=True),
            rank_tensors=self.stage.engine.random_state(),
            state=state.to_dict(),
            manifest=manifest | self.stage.checkpoint_extras(state),
            best=state.best_step == state.step,
        )

    def rewind(self, step: int) -> TrainState:
        """Fill the stage from the newest valid checkpoint of at most `step`, and forget later ones. Collective.

        Raises TrainingDiverged when there is none.
        """
        path = self.checkpointer.rewind(step)
        if path is None:
            raise TrainingDiverged(
                f"the loss jumped, and there is no valid checkpoint of step {step} or before to go back to: lower "
                "reliability.spike_rewind or checkpoint.interval, or start the run anew with a lower optim.lr"
            )
        return self._fill(path)

    def poll(self, wait: bool = False) -> None:
        """Publish a save that a background thread has finished, or report its failure on every rank."""
        self.checkpointer.poll(wait)

    def _fill(self, path: Path) -> TrainState:
        """Fill the stage from a checkpoint of the run.

        The best checkpoint becomes the one that was the best then, or none where another metric is asked for now.
        """
        engine, wanted = self.stage.engine, self.config.checkpoint
        state = TrainState(**self.checkpointer.load(path, self.stage.shards(for_saving=False)))
        manifest = read_manifest(path)
        if manifest["layout"] == self._layout():  # before the optimizer takes parameters over
            engine.set_random_state(self.checkpointer.rank_tensors(path, engine.dims.rank))
        self.stage.post_load(state.optimizer_step)
        same_mode = manifest["config"].get("checkpoint", {}).get("best_mode") == wanted.best_mode
        measured = manifest["config"].get("embed", {})
        same_measure = all(measured.get(name) == getattr(self.config.embed, name) for name in MEASURED_BY if measured)
        comparable = state.best_metric == wanted.best_metric and same_mode and same_measure
        if not self.checkpointer.name_best(state.best_step if comparable else None):
            state.best_metric = state.best_value = state.best_step = None
        return state

    def _layout(self) -> dict[str, Any]:
        """Layout of the job, as a checkpoint's manifest records it."""
        dims = self.stage.engine.dims
        return {
            "tensor_parallel_size": dims.tensor_size,
            "pipeline_parallel_size": dims.pipeline_size,
            "virtual_pipeline_size": dims.virtual_size,
            "data_parallel_size": dims.data_size,
        }


def with_lengths(config: Config) -> Config:
    """`config` with the lengths of its schedule as numbers, and nothing to derive them from."""
    lengths = dataclasses.asdict(config.optim.schedule)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **lengths, published=Schedule()))


def _compare(saved: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Refuse or log every field that differs between a checkpoint's configuration and the run's."""
    before, now = _flatten(saved), _flatten(wanted)
    changed = {key: (before.get(key), now.get(key)) for key in before | now if before.get(key) != now.get(key)}
    kept = ("model.", *CHANGES_SAMPLES)
    if now["stage.name"] == "embed":
        kept += CHANGES_EMBEDDING
    fixed = [
        f"{key} is {new}, but the run was started with {old}"
        for key, (old, new) in changed.items()
        if key.startswith(kept) and key not in MAY_CHANGE
    ]
    if fixed:
        raise ConfigError(
            "\n".join(fixed) + f"\n{path} cannot go on like this: set them back, or give the new run another run_name "
            "(checkpoint.load starts it from these weights)"
        )
    for key, (old, new) in changed.items():
        if not key.startswith(NOT_WORTH_SAYING):
            log.warning("%s changed from %s to %s on resume", key, old, new)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
