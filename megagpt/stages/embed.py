"""Stage `embed`: vectors of texts, from pairs that belong together (arXiv 2201.10005)."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from megagpt.config.schema import Config
from megagpt.data.packed import permutation
from megagpt.data.pair_loader import PairBatch, PairLoader
from megagpt.data.pairs import Pair
from megagpt.errors import DataError, TrainingDiverged
from megagpt.evaluate.embedder import Embedder
from megagpt.evaluate.ranking import search_among_candidates, spearman
from megagpt.evaluate.similarity import read_sentence_pairs
from megagpt.parallel.engine import StepResult
from megagpt.stages.base import AFTER, BEFORE, BaseStage
from megagpt.stages.supervised import with_epochs
from megagpt.train.contrastive import ContrastiveObjective, contrastive_gradients, with_gradients
from megagpt.train.state import TrainState
from megagpt.train.trainer import Step, Trainer

log = logging.getLogger(__name__)

MEASURED_BLOCKS = 10
"""Blocks of `embed.candidates` held-out pairs that are measured at most: all of their vectors are in memory at once."""


class Embed(BaseStage):
    """Learns vectors by which queries find their documents; held-out pairs are measured before and after."""

    loader: PairLoader
    objective: ContrastiveObjective

    def __init__(self, config: Config) -> None:
        """Open the pairs, and the scored pairs where there are some."""
        loader = PairLoader(config)
        config = with_epochs(config, loader.pairs_per_epoch, loader.sample_tokens)
        super().__init__(config, loader, ContrastiveObjective(config.embed))
        scored = config.embed.scored_pairs
        self.scored = [] if scored is None else read_sentence_pairs(Path(scored))
        if scored is not None and len({pair.score for pair in self.scored}) < 2:
            raise DataError(f"embed.scored_pairs ({scored}) needs pairs with different scores, to correlate with")

    def build(self) -> None:
        """See `Stage.build`."""
        super().build()
        if self.engine.dims.data_size > 1:
            self.objective.group = self.engine.modules[0].pg_collection.dp
        self.embedder = Embedder(self.engine, self.config, self.loader.tokenizer)

    def begin(self, state: TrainState) -> None:
        """Measure the loaded model, into evaluation_before.json."""
        self.write_evaluation(BEFORE, state, self._measure(max_tokens=None))

    def fit(self, trainer: Trainer) -> None:
        """Train on the loader's batches, a step at a time, see `train_step`."""
        dims = self.engine.dims
        with trainer.running():
            while trainer.unfinished:
                step = trainer.begin_step()
                batches = self.loader.micro_batches(step.first_sample, step.batch_size, dims.data_rank, dims.data_size)
                trainer.end_step(step, self.train_step(trainer.watchdog.batches(batches), step))

    def train_step(self, batches: Iterator[PairBatch], step: Step) -> StepResult:
        """Learn from the micro-batches of a step.

        Where there are several, the loss needs the vectors of all before the first can go backward. So they come from a
        pass that only computes them, and the pass that learns is given the gradients in them (GradCache, arXiv
        2101.06983). It begins with the same random state, so that dropout drops the same.
        """
        engine, count = self.engine, step.num_micro_batches
        if count > 1:
            batches, before = list(batches), engine.random_state()
            vectors = engine.outputs(iter(batches), count, training=True)
            engine.set_random_state(before)
            if engine.dims.is_last_stage:
                on_device = [batch.to(engine.device) for batch in batches]
                batches = with_gradients(vectors, on_device, self.config.embed, self.objective.group)
        return engine.train_step(iter(batches), count, step.lr)

    @property
    def evaluation_metrics(self) -> list[str]:
        """See `Stage.evaluation_metrics`."""
        of_pairs = ["validation_loss", "validation_mrr"] if self.loader.pairs["validation"] else []
        return of_pairs + (["validation_spearman"] if self.scored else [])

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """See `Stage.evaluate`: of held-out pairs of at most `stage.eval_tokens`, and of the scored pairs."""
        values = self._measure(self.config.stage.eval_tokens)
        return {f"validation_{name}": values[name] for name in ("loss", "mrr", "spearman") if name in values}

    def finish(self, state: TrainState) -> None:
        """Measure the trained model on all held-out pairs, into evaluation.json."""
        self.write_evaluation(AFTER, state, self._measure(max_tokens=None))

    def _measure(self, max_tokens: int | None) -> dict[str, float]:
        """Loss and search among `embed.candidates` held-out documents, and the rank correlation with scores."""
        pairs, values = self._held_out(max_tokens), {}
        if pairs:
            queries, _ = self.embedder.vectors([pair.query for pair in pairs], "query")
            positives, _ = self.embedder.vectors([pair.positive for pair in pairs], "document")
            if not (np.isfinite(queries).all() and np.isfinite(positives).all()):
                raise TrainingDiverged(
                    "vectors of held-out pairs are not finite: go on from an earlier checkpoint with a lower optim.lr"
                    f" than {self.config.optim.lr:g}"
                )
            values["pairs"] = len(pairs)
            values["loss"], values["temperature"] = self._loss(queries, positives, pairs)
            same = np.array([pair.text_ids[1] for pair in pairs])
            values |= search_among_candidates(queries, positives, self.config.embed.candidates, self.config.seed, same)
        if self.scored:
            first, second = (
                self.embedder.embed([getattr(pair, name) for pair in self.scored], "query")
                for name in ("sentence1", "sentence2")
            )
            values["spearman"] = spearman((first * second).sum(1), [pair.score for pair in self.scored])
        return values

    def _held_out(self, max_tokens: int | None) -> list[Pair]:
        """Held-out pairs of at most `max_tokens`, and at most MEASURED_BLOCKS x `embed.candidates`, always the same.

        They are drawn from all over the files, which are in the order of repositories and sets.
        """
        pairs, count = self.loader.pairs["validation"], MEASURED_BLOCKS * self.config.embed.candidates
        if max_tokens is not None:
            count = min(count, max(2, max_tokens // self.loader.sample_tokens))
        return [pairs[index] for index in permutation(len(pairs), self.config.seed)[:count]]

    def _loss(self, queries: np.ndarray, positives: np.ndarray, pairs: Sequence[Pair]) -> tuple[float, float]:
        """Mean loss of held-out pairs in blocks of `embed.candidates`, and the temperature."""
        texts = torch.from_numpy(np.stack((queries, positives)))
        ids = torch.tensor([[pair.text_ids[kind] for pair in pairs] for kind in (0, 1)])
        size, total = self.config.embed.candidates, torch.zeros(5)
        for block, block_ids in zip(texts.split(size, 1), ids.split(size, 1), strict=True):
            total += contrastive_gradients(block, block_ids, self.config.embed, None)[1]
        return float(total[0] / total[1]), float(total[4] / total[1])
