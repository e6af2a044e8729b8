"""What a run saves, and what it starts from: its own newest checkpoint, another run's weights, or nothing."""

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megagpt import errors
from megagpt.checkpoint import Checkpointer, config_of, data_of, first_choice, read_manifest, weights_content
from megagpt.config.load import raise_all, to_dict
from megagpt.config.schema import Config, Schedule
from megagpt.data.identity import WEIGHTS, Identity, changes, identity, repeated
from megagpt.errors import CheckpointError, ConfigError, MegaGPTError, TrainingDiverged
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

KEPT_INPUTS = (*CHANGES_SAMPLES, *WEIGHTS)
"""Inputs whose content a run keeps."""

CHANGES_STATE = ("optim.precision", "optim.optimizer")
"""Fields on which optimizer state depends: what there is, and its dtypes."""

CHANGES_EMBEDDING = ("embed.", "optim.global_batch_size")
"""What a run of stage embed keeps besides: its batches are drawn as a whole, and its vectors mean what it says."""

NOT_WORTH_SAYING = ("logging.", "checkpoint.", "reliability.", "runs_dir", "run_name")


class RunCheckpoints:
    """The checkpoints of a run: tensors of its stage, its counters, and each rank's random state.

    In the layout that saved it, a run goes on bit for bit; in another one the random streams (of dropout) start anew.
    """

    def __init__(self, stage: Stage, checkpointer: Checkpointer) -> None:
        self.stage, self.checkpointer, self.config = stage, checkpointer, stage.config
        self.data: Identity = self._by_first_rank(self._look_at_inputs)
        """What the run reads, by content: it may move, and must not change."""

    def restore(self) -> TrainState:
        """Fill the stage from where the run stands and return its counters. Collective.

        Raises ConfigError when a field changed that a run must keep, CheckpointError when no checkpoint is valid.
        """
        config, newest = self.config, self.checkpointer.find_newest()
        if newest is None:
            if config.checkpoint.load:
                source = load_weights(config, self.stage.engine)
                self.data |= self._by_first_rank(lambda: {"checkpoint.load": self._weights("checkpoint.load", source)})
                self.stage.post_load(0)
            return TrainState()
        if not config.checkpoint.resume:
            raise ConfigError(
                f"{newest.parent} has checkpoints, but checkpoint.resume is false: give the new run another run_name "
                f"than {config.run_name}, or move its folder away"
            )
        # Through the schema, so that a key which is newer than the run has its default, as the run had without it.
        manifest = read_manifest(newest)
        saved, now = (to_dict(with_lengths(one)) for one in (config_of(newest, manifest), config))
        before = data_of(newest, manifest)
        self.data |= self._by_first_rank(lambda: self._look_at_weights(before))
        other = self._compare_data(before, saved)
        _compare(saved, now, newest, other)
        state = self._fill(newest)
        log.info("resumed at step %d (%d tokens) from %s", state.step, state.tokens, newest)
        return state

    def _compare_data(self, before: Identity, saved: dict[str, Any]) -> list[str]:
        """Sentences about data of the run that is not what it was when `saved` was saved.

        Paths in `saved` become those of now, since data may move: of what the checkpoint knows the content of.
        """
        for name in before.keys() & self.data.keys():
            old, new = before[name]["path"], self.data[name]["path"]
            if old != new and before[name]["content"] == self.data[name]["content"]:
                log.info("%s is now read from %s, not from %s; its content is the same", name, new, old)
            _put_path(saved, name, new)
        found = changes(before, self.data)
        for text in found:
            if not text.startswith(KEPT_INPUTS):
                log.warning("%s", text)
        return [text for text in found if text.startswith(KEPT_INPUTS)]

    def _by_first_rank(self, look: Callable[[], Identity]) -> Identity:
        """What `look` finds on the first rank, which all ranks get, or the error that it raises there. Collective."""
        found, error, world = None, None, self.checkpointer.world
        if world.rank == 0:
            try:
                found = look()
            except MegaGPTError as caught:
                error = type(caught).__name__, str(caught)
        found, error = world.broadcast([found, error])
        if error is not None:
            kind, message = error
            raise getattr(errors, kind)(message)
        return found

    def _look_at_inputs(self) -> Identity:
        found = identity(self.config)
        raise_all(repeated(found))
        return found | {field: self._weights(field, source) for field, source in self.stage.sources.items()}

    def _weights(self, field: str, source: Path) -> dict[str, str]:
        """What `Identity` says of a checkpoint that a field of the configuration names."""
        section, name = field.split(".")
        path = getattr(getattr(self.config, section), name)
        return {"path": path, "content": weights_content(source), "checkpoint": str(source)}

    def _look_at_weights(self, before: Identity) -> Identity:
        """The weights that the run started from and does not read again: as they are now, where they still are.

        before: as they were.
        """
        found: Identity = {}
        for field in (before.keys() & WEIGHTS) - self.data.keys():
            section, name = field.split(".")
            path = getattr(getattr(self.config, section), name)
            try:
                source = first_choice(Path(path)) if path else None
                found[field] = before[field] if source is None else self._weights(field, source)
            except CheckpointError:  # damaged: it is not read again
                found[field] = before[field]
        return found

    def save(self, state: TrainState) -> None:
        """Write a checkpoint. Collective."""
        manifest = {
            "run": self.config.run_name,
            "config": to_dict(self.config),
            "layout": self._layout(),
            "data": self.data,
        }
        self.checkpointer.save(
            state.step,
            self.stage.shards(for_saving=True),
            rank_tensors=self.stage.engine.random_state(),
            state=state.to_dict(),
            manifest=manifest | self.stage.checkpoint_extras(state),
        )

    def name_best(self, state: TrainState) -> None:
        """Have the checkpoint of this state, which was saved, be the best one. Collective."""
        self.checkpointer.name_best(state.step)

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
        state = _state_of(path, self.checkpointer.load(path, self.stage.shards(for_saving=False)))
        manifest = read_manifest(path)
        if manifest.get("layout") == self._layout():  # before the optimizer takes parameters over
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


def _state_of(path: Path, values: Any) -> TrainState:
    """The counters of a checkpoint. Raises CheckpointError when they are none."""
    try:
        TrainState(**values)  # names what is unknown
        return TypeAdapter(TrainState).validate_python(values)
    except (TypeError, ValidationError) as error:
        raise CheckpointError(f"{path}/state.json is not the state of a run: {error}") from None


def with_lengths(config: Config) -> Config:
    """`config` with the lengths of its schedule as numbers, and nothing to derive them from."""
    lengths = dataclasses.asdict(config.optim.lengths)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **lengths, published=Schedule()))


def _put_path(config: dict[str, Any], name: str, path: str) -> None:
    """Set an input of `Identity` in a configuration."""
    section, field, place = re.fullmatch(r"(\w+)\.(\w+)(?:\[(\d+)\])?", name).groups()
    if place is None:
        config[section][field] = path
    elif int(place) < len(config[section][field]):
        item = config[section][field][int(place)]
        config[section][field][int(place)] = item | {"path": path} if isinstance(item, dict) else path


def _compare(saved: dict[str, Any], wanted: dict[str, Any], path: Path, other_data: list[str]) -> None:
    """Refuse or log every field that differs between a checkpoint's configuration and the run's, and other data."""
    before, now = _flatten(saved), _flatten(wanted)
    changed = {key: (before.get(key), now.get(key)) for key in before | now if before.get(key) != now.get(key)}
    kept = ("model.", *CHANGES_SAMPLES, *CHANGES_STATE)
    if now["stage.name"] == "embed":
        kept += CHANGES_EMBEDDING
    fixed = [
        f"{key} is {new}, but the run was started with {old}"
        for key, (old, new) in changed.items()
        if key.startswith(kept) and key not in MAY_CHANGE
    ]
    if fixed := fixed + other_data:
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
