"""Puts a run together around the training loop, and takes a trained model out of a run."""

import dataclasses
import logging
import shutil
from pathlib import Path

import torch.distributed as dist

from megagpt import checkpoint, env
from megagpt import log as logs
from megagpt.checkpoint import Checkpointer
from megagpt.config.layout_rules import world_size_fits
from megagpt.config.load import from_dict, raise_all, to_dict
from megagpt.config.load import save as save_config
from megagpt.config.rules import check
from megagpt.config.schema import Config, CorpusConfig, DataConfig, OptimConfig, ParallelConfig
from megagpt.data.batch import Loader
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError
from megagpt.evaluate.held_out import evaluate
from megagpt.parallel import launch
from megagpt.parallel.engine import Engine
from megagpt.parallel.megatron import MegatronEngine
from megagpt.stages.resume import layout, restore_run, rewind_run
from megagpt.stages.weights import TOKENIZER
from megagpt.train.attempts import Attempts, give_up_if_hopeless
from megagpt.train.loop import Trainer
from megagpt.train.metrics import MetricsWriter
from megagpt.train.state import TrainState
from megagpt.train.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Session:
    """A run that is ready to train, and what its end needs."""

    config: Config
    engine: Engine
    loader: Loader
    trainer: Trainer
    run_dir: Path

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.engine.dims.rank == 0


def open_session(config: Config, engine: Engine, checkpointer: Checkpointer, loader: Loader) -> Session:
    """Put a run's loop together, and go on from its newest checkpoint where there is one. Collective."""
    run_dir, is_main = Path(config.run_dir), dist.get_rank() == 0
    attempts = Attempts(run_dir, enabled=is_main)
    failures = checkpointer.world.broadcast(attempts.repeated() if is_main else None)
    give_up_if_hopeless(failures, config.reliability.max_failures)
    state = restore_run(config, engine, checkpointer)
    if is_main:
        save_config(config, run_dir / "config.yaml")
        shutil.copyfile(config.data.tokenizer, run_dir / TOKENIZER)
    metrics = MetricsWriter(run_dir, config.logging, to_dict(config), enabled=is_main)
    metrics.resume(state.step)

    def save(state: TrainState) -> None:
        manifest = {"run": config.run_name, "config": to_dict(config), "layout": layout(engine)}
        tensors, best = engine.random_state(), state.best_step == state.step
        checkpointer.save(state.step, engine.shards(for_saving=True), tensors, state.to_dict(), manifest, best)

    def validate(state: TrainState) -> dict[str, float]:
        values = evaluate(engine, loader, "validation", config.stage.eval_tokens)
        names = ("loss", "perplexity", "bits_per_byte")
        return {f"validation_{name}": values[name] for name in names if name in values}

    def rewind(step: int) -> TrainState:
        return rewind_run(config, engine, checkpointer, step)

    watchdog = Watchdog(config.reliability, run_dir)
    watchdog.observe(engine.modules)
    trainer = Trainer(
        *(config, engine, loader, metrics, checkpointer, save, validate, rewind, watchdog, attempts, state)
    )
    return Session(config, engine, loader, trainer, run_dir)


def start(config: Config) -> Checkpointer:
    """Begin logging, join the other ranks and take the run folder. The checkpointer is to be closed at the end."""
    run_dir = Path(config.run_dir)
    logs.setup(run_dir)
    device = launch.initialize(config.parallel, config.seed)
    log.info("run %s in %s: %d ranks on %s", config.run_name, run_dir, dist.get_world_size(), device.type)
    return Checkpointer(run_dir / "checkpoints", config.checkpoint)


def restore(path: Path, parallel: ParallelConfig) -> tuple[Config, MegatronEngine, Tokenizer]:
    """The model of a checkpoint, or of the newest one in a run folder, laid out as `parallel`, without an optimizer.

    Raises CheckpointError when there is no valid checkpoint, ConfigError when the model does not fit the layout.
    """
    raise_all(list(world_size_fits(Config(parallel=parallel), env.world_size())))
    launch.initialize(parallel, seed=0)
    folder = checkpoint.locate(path)
    config = from_dict(checkpoint.read_manifest(folder)["config"])
    # Only the model and its layout matter here.
    optim = OptimConfig(global_batch_size=dist.get_world_size() * 64)
    data = DataConfig(tokenizer=TOKENIZER, corpora=(CorpusConfig("unused"),))
    model = dataclasses.replace(config.model, head="tokens")  # a head, too, goes with a stage
    check(Config(model=model, parallel=parallel, optim=optim, data=data), dist.get_world_size())
    config = dataclasses.replace(config, parallel=parallel)
    engine = MegatronEngine(config, objective=None, training=False)
    checkpoint.load(folder, engine.shards(for_saving=False), strict=False)
    beside = folder.parent.parent / TOKENIZER
    if not beside.exists() and not config.data.tokenizer:
        raise CheckpointError(f"{folder} has no tokenizer: put the tokenizer.json that it was trained with at {beside}")
    return config, engine, Tokenizer.load(beside if beside.exists() else config.data.tokenizer)
