"""Common code of the stages. A new stage inherits from `BaseStage` and overrides methods."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megagpt.config.schema import Config
from megagpt.data.batch import Loader
from megagpt.evaluate.held_out import evaluate
from megagpt.parallel.build import build_engine
from megagpt.parallel.engine import Engine, Objective
from megagpt.parallel.shards import Shard
from megagpt.stages import tasks
from megagpt.train.metrics import replace_file
from megagpt.train.state import TrainState
from megagpt.train.trainer import Trainer

log = logging.getLogger(__name__)

BEFORE, AFTER = "evaluation_before.json", "evaluation.json"
"""Files in a run folder: metrics before the first step, and metrics of the trained model."""

TEXT_METRICS = ("loss", "perplexity", "bits_per_byte")
"""Metrics of held-out text."""


def has_documents(loader: Loader) -> bool:
    """Whether there is held-out text to evaluate on."""
    return len(loader.evaluation_batches("validation", None)) > 0


class BaseStage:
    """Implements `megagpt.train.trainer.Stage`: minimizes an objective on the loader's batches, step by step.

    The constructor opens the data and `build` builds the model, so that missing data is reported first.
    """

    engine: Engine

    def __init__(self, config: Config, loader: Loader, objective: Objective) -> None:
        """config: the run's configuration, with the schedule completed. loader: all batches of the run."""
        self.config, self.loader, self.objective = config, loader, objective
        self.sample_tokens = loader.sample_tokens

    def build(self) -> None:
        """See `Stage.build`."""
        self.engine = build_engine(self.config, self.objective)

    @property
    def engines(self) -> list[Engine]:
        """See `Stage.engines`."""
        return [self.engine]

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.config.run_dir)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.engine.dims.rank == 0

    @property
    def sources(self) -> dict[str, Path]:
        """See `Stage.sources`; none."""
        return {}

    def begin(self, state: TrainState) -> None:
        """See `Stage.begin`; nothing is measured."""

    def fit(self, trainer: Trainer) -> None:
        """Train on the loader's batches until the run is finished or stopped."""
        dims = self.engine.dims
        with trainer.running():
            while trainer.unfinished:
                step = trainer.begin_step()
                batches = self.loader.micro_batches(step.first_sample, step.batch_size, dims.data_rank, dims.data_size)
                watched = trainer.watchdog.batches(batches)
                trainer.end_step(step, self.engine.train_step(watched, step.num_micro_batches, step.lr))

    @property
    def evaluation_metrics(self) -> list[str]:
        """See `Stage.evaluation_metrics`."""
        return [f"validation_{name}" for name in TEXT_METRICS] if has_documents(self.loader) else []

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """See `Stage.evaluate`: the loss on at most `stage.eval_tokens` of the validation split."""
        values = evaluate(self.engine, self.loader, "validation", self.config.stage.eval_tokens)
        return {f"validation_{name}": values[name] for name in TEXT_METRICS if name in values}

    def ask_tasks(self, state: TrainState) -> dict[str, float]:
        """See `Stage.ask_tasks`."""
        return tasks.measure(self.config, self.engine, self.loader.tokenizer)

    def finish(self, state: TrainState) -> None:
        """See `Stage.finish`; nothing is measured."""

    def shards(self, for_saving: bool) -> Iterator[Shard]:
        """See `Stage.shards`: the engine's shards."""
        return self.engine.shards(for_saving)

    def post_load(self, optimizer_step: int) -> None:
        """See `Stage.post_load`."""
        self.engine.post_load(optimizer_step)

    def checkpoint_extras(self, state: TrainState) -> dict[str, Any]:
        """See `Stage.checkpoint_extras`; there are none."""
        return {}

    def write_evaluation(
        self, name: str, state: TrainState, values: dict[str, Any], new: dict[str, Any] | None = None
    ) -> None:
        """Write metrics of the validation split to the file `name` of the run folder, and log them.

        Values that are not finite are null in the file, because JSON has no NaN.

        new: the values to log, if not all.
        """
        if not self.is_main or not values:
            return
        about = {"step": state.step, "split": "validation"}
        known = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        replace_file(self.run_dir / name, json.dumps(about | known, indent=2, allow_nan=False) + "\n")
        shown = (values if new is None else new).items()
        shown = ", ".join(f"{key} {value:.4g}" for key, value in shown if isinstance(value, int | float))
        log.info("held out: %s", shown)

    def write_samples(self, state: TrainState, samples: Sequence[dict[str, Any]]) -> None:
        """Write generated texts, each with its prompt, to samples.jsonl of the run folder.

        Those before the first step go to samples_before.jsonl.
        """
        if self.is_main:
            lines = [json.dumps({"step": state.step} | sample) for sample in samples]
            name = "samples.jsonl" if state.step else "samples_before.jsonl"
            replace_file(self.run_dir / name, "".join(line + "\n" for line in lines))
