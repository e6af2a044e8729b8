"""Evaluates a run on in-context tasks while it trains (`stage.tasks`)."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch.distributed as dist

from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.parallel.engine import Engine

log = logging.getLogger(__name__)

SEED = 1234
"""Seed of the choice of demonstrations; constant, so that results of different steps and runs are comparable."""


def check(config: Config) -> None:
    """Check the tasks of `stage.tasks` and their data, without a model.

    Raises ConfigError for an unknown task or when lm-eval is not installed, and DataError for missing data.
    """
    from megagpt.evaluate.in_context.run import check_tasks

    tasks = config.stage.tasks
    try:
        check_tasks(tasks.names, tasks.shots, tasks.protocol, _folder(config))
    except (ConfigError, DataError) as error:
        raise type(error)(f"stage.tasks: {error}") from error


def measure(config: Config, engine: Engine, tokenizer: Tokenizer) -> dict[str, float]:
    """{task_<name>_<n>shot: main metric} of each task with each number of demonstrations.

    Replicas share the questions. Random states and training modes are restored afterwards, so that training does not
    depend on the evaluation. Collective; no rank returns before all are done.
    """
    from megagpt.evaluate.in_context.language_model import MegaGPTLM
    from megagpt.evaluate.in_context.run import run_tasks

    tasks, values = config.stage.tasks, {}
    with _same_random_state(engine):
        lm = MegaGPTLM(engine.modules, config, tokenizer)
        outcomes = run_tasks(
            lm,
            tasks=tasks.names,
            shots=tasks.shots,
            protocol=tasks.protocol,
            data=_folder(config),
            limit=tasks.limit,
            seed=SEED,
        )
        for outcome in outcomes:
            values[f"task_{outcome.task}_{outcome.shots}shot"] = outcome.metrics[outcome.main_metric]
            for note in outcome.notes:
                log.info("task %s, %d-shot: %s", outcome.task, outcome.shots, note)
    dist.barrier()
    return values


def _folder(config: Config) -> Path | None:
    return None if config.stage.tasks.data is None else Path(config.stage.tasks.data)


@contextmanager
def _same_random_state(engine: Engine) -> Iterator[None]:
    """Restore the random states of Python, NumPy and the engine at the end of the block."""
    python, numpy, own = random.getstate(), np.random.get_state(), engine.random_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        engine.set_random_state(own)
