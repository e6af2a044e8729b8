"""Sets up a run (logging, ranks, run folder, stage, trainer) and runs it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from megagpt import log as logs
from megagpt.checkpoint import Checkpointer
from megagpt.config.load import save as save_config
from megagpt.config.load import to_dict
from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import STOPPED_BY_SIGNAL
from megagpt.parallel import launch
from megagpt.stages.embed import Embed
from megagpt.stages.ppo import PPO
from megagpt.stages.pretrain import Pretrain
from megagpt.stages.reward import Reward
from megagpt.stages.run_checkpoints import RunCheckpoints
from megagpt.stages.supervised import Supervised
from megagpt.stages.weights import TOKENIZER
from megagpt.train.attempts import Attempts, give_up_if_hopeless
from megagpt.train.metrics import MetricsWriter
from megagpt.train.schedules import describe_schedule, misfits
from megagpt.train.trainer import Stage, Trainer, check_best_metric
from megagpt.train.watchdog import Watchdog

log = logging.getLogger(__name__)


STAGES: dict[str, Callable[[Config], Stage]] = {
    "pretrain": Pretrain,
    "code": Pretrain,
    "edit": Supervised,
    "sft": Supervised,
    "reward": Reward,
    "ppo": PPO,
    "embed": Embed,
}
"""Stage classes by `stage.name`.

code differs from pretrain, and edit from sft, only in the configuration: the data, and the weights that a run loads.
"""


def run_stage(config: Config) -> int:
    """Train and evaluate the stage `config.stage.name`; returns the exit code. Collective."""
    with open_run(config) as trainer:
        stage, watchdog = trainer.stage, trainer.watchdog
        if not trainer.state.step:
            with watchdog, watchdog.within("evaluation"):
                stage.begin(trainer.state)
        stage.fit(trainer)
        if not trainer.finished:
            return STOPPED_BY_SIGNAL
        with watchdog, watchdog.within("evaluation"):
            stage.finish(trainer.state)
        trainer.metrics.finish()
    return 0


@contextmanager
def open_run(config: Config, make: Callable[[Config], Stage] | None = None) -> Iterator[Trainer]:
    """Join the other ranks, take the run folder, open the data, build the models, and restore the newest checkpoint.

    make: constructor of the stage; by default the class of `config.stage.name`. Yields the trainer, whose `stage` is
    built. Collective.
    """
    run_dir = Path(config.run_dir)
    logs.setup(run_dir)
    device = launch.initialize(config.parallel, config.seed)
    log.info("run %s in %s: %d ranks on %s", config.run_name, run_dir, dist.get_world_size(), device.type)
    with Checkpointer(run_dir / "checkpoints", config.checkpoint) as checkpointer:
        stage = (make or STAGES[config.stage.name])(config)
        check_best_metric(stage)
        stage.build()
        yield _open_trainer(stage, checkpointer)


def _open_trainer(stage: Stage, checkpointer: Checkpointer) -> Trainer:
    """Restore the newest checkpoint, if any, and create the files of the run folder. Collective."""
    config, is_main = stage.config, dist.get_rank() == 0
    run_dir = Path(config.run_dir)
    attempts = Attempts(run_dir, enabled=is_main)
    failures = checkpointer.world.broadcast(attempts.repeated() if is_main else None)
    give_up_if_hopeless(failures, config.reliability.max_failures)
    log.info(describe_schedule(config.optim))
    for warning in misfits(config.optim, stage.sample_tokens):
        log.warning(warning)
    checkpoints = RunCheckpoints(stage, checkpointer)
    state = checkpoints.restore()
    if is_main:
        save_config(config, run_dir / "config.yaml")
        Tokenizer.load(config.data.tokenizer).save(run_dir / TOKENIZER)
    metrics = MetricsWriter(run_dir, config.logging, to_dict(config), enabled=is_main)
    metrics.resume(state.step)
    watchdog = Watchdog(config.reliability, run_dir)
    for engine in stage.engines:
        watchdog.observe(engine.modules)
    return Trainer(
        stage=stage, checkpoints=checkpoints, metrics=metrics, watchdog=watchdog, attempts=attempts, state=state
    )
