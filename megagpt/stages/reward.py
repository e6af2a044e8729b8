"""Stage `reward`: trains a model that scores responses on human rankings (InstructGPT, arXiv 2203.02155)."""

import logging
from typing import Any

import numpy as np

from megagpt.config.schema import Config
from megagpt.data.chat import truncate_to_context
from megagpt.data.conversations import read_conversations, split_conversations
from megagpt.data.ranked_loader import RankedLoader
from megagpt.errors import DataError
from megagpt.evaluate.scores import evaluate_rankings, score
from megagpt.stages.base import AFTER, BaseStage
from megagpt.stages.supervised import with_epochs
from megagpt.train.objectives import RewardObjective
from megagpt.train.state import TrainState
from megagpt.train.trainer import may_be_best

log = logging.getLogger(__name__)


class Reward(BaseStage):
    """Learns for `optim.train_epochs` to score better responses higher; evaluates on held-out rankings at the end.

    The loss depends only on differences of scores. So the last checkpoint and the best one hold the mean score of
    demonstrations (`score_offset`), which is subtracted from all scores when the model is loaded, as InstructGPT did
    before PPO.
    """

    loader: RankedLoader

    def __init__(self, config: Config) -> None:
        """Open the rankings and the demonstrations."""
        loader = RankedLoader(config)
        config = with_epochs(config, len(loader.examples["train"]), loader.sample_tokens)
        super().__init__(config, loader, RewardObjective())
        self.demonstrations = demonstrations(config, loader)

    @property
    def evaluation_metrics(self) -> list[str]:
        """See `Stage.evaluation_metrics`."""
        return ["validation_loss", "validation_accuracy"] if self.loader.held_out("validation", 1) else []

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """See `Stage.evaluate`: loss and accuracy on held-out rankings with at most `stage.eval_tokens`."""
        values = self._measure(self.config.stage.eval_tokens)
        return {f"validation_{name}": values[name] for name in ("loss", "accuracy") if values}

    def checkpoint_extras(self, state: TrainState) -> dict[str, Any]:
        """See `Stage.checkpoint_extras`: `score_offset`, for the last checkpoint and for one that may be the best."""
        finished = state.tokens >= self.config.optim.train_tokens
        if not (finished or state.best_step == state.step or may_be_best(self.config, state)):
            return {}
        offset = self._score_of_demonstrations()
        log.info("the mean score of demonstrations is %.4f; loading the model subtracts it from all scores", offset)
        return {"score_offset": offset}

    def begin(self, state: TrainState) -> None:
        """Score the demonstrations once, so that an error in it appears now and not before the last checkpoint."""
        self._score_of_demonstrations()

    def _score_of_demonstrations(self) -> float:
        return float(score(self.engine, self.config, self.loader.tokenizer, self.demonstrations).mean())

    def finish(self, state: TrainState) -> None:
        """Evaluate the trained model on all held-out rankings and write evaluation.json."""
        self.write_evaluation(AFTER, state, self._measure(max_tokens=None))

    def _measure(self, max_tokens: int | None) -> dict[str, Any]:
        rankings = self.loader.held_out("validation", max_tokens)
        return evaluate_rankings(self.engine, self.config, self.loader.tokenizer, rankings)


def demonstrations(config: Config, loader: RankedLoader) -> list[np.ndarray]:
    """Token ids, int64 [n] each, of the conversations whose mean score is set to 0.

    They are the training split of data.conversations or, without it, the best response to each training prompt.
    Raises DataError when no conversation fits the context.
    """
    if not config.data.conversations:
        return [
            row
            for example in loader.examples["train"]
            for row, rank in zip(example.rows, example.ranks, strict=True)
            if rank == min(example.ranks)
        ]
    conversations = split_conversations(read_conversations(config.data.conversations), config.data.split)["train"]
    length = config.model.sequence_length
    found = [truncate_to_context(loader.tokenizer, one.messages, length) for one in conversations]
    if rows := [example.tokens for example in found if example is not None]:
        return rows
    raise DataError(
        f"none of the {len(found)} conversations in the train split of data.conversations has a response that ends"
        f" within model.sequence_length ({length}), so there are no demonstrations to compute the score offset from:"
        " add shorter conversations"
    )
