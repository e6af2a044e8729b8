"""Saves and restores a run, which starts from its newest checkpoint, from another run's weights, or from scratch."""

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
"""Exceptions to the fixed fields below: they change neither the meaning of the weights nor the samples."""

MEASURED_BY = ("scored_pairs", "candidates")
"""Fields of `embed` on which its metrics depend."""

CHANGES_SAMPLES = ("seed", "data.", "model.sequence_length", "stage.name")
"""Fields that determine the order of training samples; they may not change when a run resumes."""

KEPT_INPUTS = (*CHANGES_SAMPLES, *WEIGHTS)
"""Inputs whose content may not change when a run resumes."""

CHANGES_STATE = ("optim.precision", "optim.optimizer")
"""Fields that determine the tensors and dtypes of the optimizer state."""

CHANGES_EMBEDDING = ("embed.", "optim.global_batch_size")
"""Further fields that may not change in stage embed: batches are drawn as a whole, and `embed` defines the vectors."""

NOT_WORTH_SAYING = ("logging.", "checkpoint.", "reliability.", "runs_dir", "run_name")
"""Fields whose changes are not logged when a run resumes."""


class RunCheckpoints:
    """The checkpoints of a run: tensors of its stage, its counters, and each rank's random state.

    In the layout that saved the checkpoint, a resumed run is bitwise equal to an uninterrupted one. In another layout
    the random streams of dropout start from the seed again.
    """

    def __init__(self, stage: Stage, checkpointer: Checkpointer) -> None:
        self.stage, self.checkpointer, self.config = stage, checkpointer, stage.config
        self.data: Identity = self._by_first_rank(self._look_at_inputs)
        """Identities, by content, of the files that the run reads: a file may move, but its content may not change."""

    def restore(self) -> TrainState:
        """Fill the stage from the newest checkpoint, or else from `checkpoint.load`; return the counters. Collective.

        Raises ConfigError when a field changed that may not change, CheckpointError when no checkpoint is valid.
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
                f"{newest.parent} has checkpoints, but checkpoint.resume is false: give the new run a run_name other "
                f"than {config.run_name}, or move its folder away"
            )
        # The schema adds the defaults of keys that did not exist when the run was saved.
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
        """One sentence for each input whose content changed since the checkpoint `before`; others are only logged.

        Data may move: for every input whose content the checkpoint knows, `saved` gets the current path.
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
        """The result of `look()` on the first rank, on every rank. Collective.

        Raises on every rank the MegaGPTError that `look` raises on the first.
        """
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
        """The `Identity` entry of the checkpoint `source`, which the configuration names in `field`."""
        section, name = field.split(".")
        path = getattr(getattr(self.config, section), name)
        return {"path": path, "content": weights_content(source), "checkpoint": str(source)}

    def _look_at_weights(self, before: Identity) -> Identity:
        """Identities of weights that the run started from and does not read again.

        before: their identities in the run's checkpoint; they stay where the weights no longer exist.
        """
        found: Identity = {}
        for field in (before.keys() & WEIGHTS) - self.data.keys():
            section, name = field.split(".")
            path = getattr(getattr(self.config, section), name)
            try:
                source = first_choice(Path(path)) if path else None
                found[field] = before[field] if source is None else self._weights(field, source)
            except CheckpointError:  # damaged, but the run does not read it again
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
        """Mark the saved checkpoint of `state` as the best one. Collective."""
        self.checkpointer.name_best(state.step)

    def rewind(self, step: int) -> TrainState:
        """Fill the stage from the newest valid checkpoint of at most `step`, and discard later ones. Collective.

        Raises TrainingDiverged when there is none.
        """
        path = self.checkpointer.rewind(step)
        if path is None:
            raise TrainingDiverged(
                f"the loss jumped, and there is no valid checkpoint of step {step} or before to return to: lower "
                "reliability.spike_rewind or checkpoint.interval, or restart the run with a lower optim.lr"
            )
        return self._fill(path)

    def poll(self, wait: bool = False) -> None:
        """Publish a save that a background thread has finished, or report its failure on every rank."""
        self.checkpointer.poll(wait)

    def _fill(self, path: Path) -> TrainState:
        """Fill the stage from a checkpoint of the run.

        The best checkpoint becomes the one that was best at that time, or none if the metric has changed since.
        """
        engine, wanted = self.stage.engine, self.config.checkpoint
        state = _state_of(path, self.checkpointer.load(path, self.stage.shards(for_saving=False)))
        manifest = read_manifest(path)
        if manifest.get("layout") == self._layout():  # before `post_load`, when the optimizer takes over the parameters
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
        """The layout's sizes, as a checkpoint's manifest records them."""
        dims = self.stage.engine.dims
        return {
            "tensor_parallel_size": dims.tensor_size,
            "pipeline_parallel_size": dims.pipeline_size,
            "virtual_pipeline_size": dims.virtual_size,
            "data_parallel_size": dims.data_size,
        }


def _state_of(path: Path, values: Any) -> TrainState:
    """The counters of a checkpoint. Raises CheckpointError when `values` are not a valid TrainState."""
    try:
        TrainState(**values)  # its error names unknown fields
        return TypeAdapter(TrainState).validate_python(values)
    except (TypeError, ValidationError) as error:
        raise CheckpointError(f"{path}/state.json is not the state of a run: {error}") from None


def with_lengths(config: Config) -> Config:
    """`config` with the schedule's lengths as explicit numbers, and without the fields that they derive from."""
    lengths = dataclasses.asdict(config.optim.lengths)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **lengths, published=Schedule()))


def _put_path(config: dict[str, Any], name: str, path: str) -> None:
    """Set the path of the input `name`, such as data.corpora[0], in a configuration."""
    section, field, place = re.fullmatch(r"(\w+)\.(\w+)(?:\[(\d+)\])?", name).groups()
    if place is None:
        config[section][field] = path
    elif int(place) < len(config[section][field]):
        item = config[section][field][int(place)]
        config[section][field][int(place)] = item | {"path": path} if isinstance(item, dict) else path


def _compare(saved: dict[str, Any], wanted: dict[str, Any], path: Path, other_data: list[str]) -> None:
    """Raise ConfigError for fields that may not change, and for `other_data`; log other changed fields."""
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
            "\n".join(fixed) + f"\n{path} cannot resume with these changes: undo them, or give the new run another "
            "run_name (checkpoint.load starts it from these weights)"
        )
    for key, (old, new) in changed.items():
        if not key.startswith(NOT_WORTH_SAYING):
            log.warning("%s changed from %s to %s on resume", key, old, new)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
