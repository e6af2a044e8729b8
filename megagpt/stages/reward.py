"""Stage `reward`: a model that scores answers, from people's rankings of them (InstructGPT, arXiv 2203.02155)."""

import json
import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch

from megagpt.checkpoint import Checkpointer
from megagpt.config.schema import Config
from megagpt.data.chat import truncate_to_context
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.ranked_loader import RankedLoader
from megagpt.errors import STOPPED_BY_SIGNAL, DataError
from megagpt.evaluate.scores import judge, score
from megagpt.parallel.build import build_engine
from megagpt.parallel.engine import Engine
from megagpt.parallel.shards import Shard
from megagpt.stages.session import Session, open_session, start
from megagpt.stages.supervised import with_epochs
from megagpt.train.metrics import replace_file
from megagpt.train.objectives import RewardObjective
from megagpt.train.state import TrainState

log = logging.getLogger(__name__)

ASIDE = "unshifted."
"""What names of biases begin with that a checkpoint keeps beside shifted ones."""

BIAS = ("model/scalar_head.bias", "optimizer/master/scalar_head.bias")
"""What is added to every score: the parameter, and the optimizer's copy of it."""


def run(config: Config) -> int:
    """Train for `optim.train_epochs`, make demonstrations score 0, and judge the model on held-out rankings."""
    with start(config) as checkpointer:
        session = open_reward(config, checkpointer)
        if not session.trainer.fit():
            return STOPPED_BY_SIGNAL
        with session.trainer.watchdog as watchdog, watchdog.within("evaluation"):
            evaluate_run(session)
        session.trainer.metrics.finish()
    return 0


def open_reward(config: Config, checkpointer: Checkpointer) -> Session:
    """Put a run's loop together, whose last and whose best checkpoint are of the shifted model. Collective."""
    loader = RankedLoader(config)
    shown = demonstrations(config, loader)
    config = with_epochs(config, len(loader.examples["train"]), loader.sample_tokens)
    engine = build_engine(config, RewardObjective())
    aside = keep_aside(engine)
    session = open_session(config, engine, checkpointer, loader)
    save: Callable[[TrainState], None] = session.trainer.save

    def shift_and_save(state: TrainState) -> None:
        last = state.tokens >= config.optim.train_tokens
        if not last and state.best_step != state.step:
            save(state)
            return
        mean = float(score(engine, config, loader.tokenizer, shown).mean())
        before = {shard.label: shard.data.clone() for shard in _biases(engine)}
        shift(engine, mean, state.optimizer_step)
        if last:
            save(state)
            return
        aside.update(before)  # training goes on from what it was, to the last bit
        save(state)
        _restore(engine, aside)
        engine.post_load(state.optimizer_step)
        aside.clear()

    def validate(state: TrainState) -> dict[str, float]:
        values = judge(engine, config, loader.tokenizer, loader.held_out("validation", config.stage.eval_tokens))
        return {f"validation_{name}": values[name] for name in ("loss", "accuracy") if values}

    session.trainer.save, session.trainer.evaluate = shift_and_save, validate
    return session


def demonstrations(config: Config, loader: RankedLoader) -> list[np.ndarray]:
    """Conversations, int64 [n] each, that are to score 0 on average: the train split of data.conversations, or else
    the best answers to the training prompts. Raises DataError when none fits the context."""
    if not config.data.conversations:
        return [
            row
            for example in loader.examples["train"]
            for row, rank in zip(example.rows, example.ranks, strict=True)
            if rank == min(example.ranks)
        ]
    conversations = split_conversations(read_conversations(config.data.conversations), config.data.split)["train"]
    length = config.model.sequence_length
    found = [truncate_to_context(loader.tokenizer, conversation.messages, length) for conversation in conversations]
    if rows := [example.tokens for example in found if example is not None]:
        return rows
    raise DataError(
        f"none of the {len(found)} conversations of data.conversations in the train split has an answer that ends"
        f" within model.sequence_length ({length}): there is nothing to set a score of 0 by"
    )


def keep_aside(engine: Engine) -> dict[str, torch.Tensor]:
    """Have the engine save with its random state, and restore before it, the biases that are put into the dict that is
    returned: those of training, where a checkpoint has shifted ones."""
    aside: dict[str, torch.Tensor] = {}
    state_of: Callable[[], dict[str, torch.Tensor]] = engine.random_state
    restore: Callable[[dict[str, torch.Tensor]], None] = engine.set_random_state

    def random_state() -> dict[str, torch.Tensor]:
        return state_of() | {ASIDE + label: value for label, value in aside.items()}

    def set_random_state(state: dict[str, torch.Tensor]) -> None:
        _restore(engine, {name.removeprefix(ASIDE): value for name, value in state.items() if name.startswith(ASIDE)})
        restore({name: value for name, value in state.items() if not name.startswith(ASIDE)})

    engine.random_state, engine.set_random_state = random_state, set_random_state
    return aside


def _biases(engine: Engine) -> Iterator[Shard]:
    return (shard for shard in engine.shards(for_saving=False) if shard.name in BIAS)


def _restore(engine: Engine, values: dict[str, torch.Tensor]) -> None:
    for shard in _biases(engine):
        if shard.label in values:
            shard.data.copy_(values[shard.label])


def shift(engine: Engine, mean: float, optimizer_step: int) -> None:
    """Subtract `mean` from all scores, after so many updates. Training does not notice, since it compares scores."""
    for shard in _biases(engine):
        shard.data.sub_(mean)
    engine.post_load(optimizer_step)
    log.info("demonstrations scored %.4f on average, which is taken off all scores", mean)


def evaluate_run(session: Session) -> None:
    """Judge the finished model on all held-out prompts, into evaluation.json. Collective."""
    config, loader = session.config, session.loader
    values = judge(session.engine, config, loader.tokenizer, loader.held_out("validation", None))
    if not session.is_main or not values:
        return
    values = {"step": session.trainer.state.step, "split": "validation"} | values
    replace_file(session.run_dir / "evaluation.json", json.dumps(values, indent=2) + "\n")
    log.info(
        "held out: accuracy %.4f over %d pairs, calibration error %.4f; chance %.4f, longer answer %.4f, shorter %.4f",
        *(values[name] for name in ("accuracy", "pairs", "calibration_error")),
        *(values[f"{name}_accuracy"] for name in ("chance", "longer", "shorter")),
    )
