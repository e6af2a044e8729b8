"""Stage `embed`: contrastive training of text embeddings on pairs of texts (arXiv 2201.10005)."""

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
"""Largest number of blocks of `embed.candidates` held-out pairs in an evaluation, which holds all vectors in memory."""


class Embed(BaseStage):
    """Trains vectors with which queries find their documents; evaluates on held-out pairs before and after."""

    loader: PairLoader
    objective: ContrastiveObjective

    def __init__(self, config: Config) -> None:
        """Open the training pairs and, if configured, the scored pairs.

        Raises DataError when all scored pairs have the same score.
        """
        loader = PairLoader(config)
        config = with_epochs(config, loader.pairs_per_epoch, loader.sample_tokens)
        super().__init__(config, loader, ContrastiveObjective(config.embed))
        scored = config.embed.scored_pairs
        self.scored = [] if scored is None else read_sentence_pairs(Path(scored))
        if scored is not None and len({pair.score for pair in self.scored}) < 2:
            raise DataError(
                f"all pairs of embed.scored_pairs ({scored}) have the same score, so no rank correlation is defined:"
                " add pairs with other scores"
            )

    def build(self) -> None:
        """See `Stage.build`."""
        super().build()
        if self.engine.dims.data_size > 1:
            self.objective.group = self.engine.modules[0].pg_collection.dp
        self.embedder = Embedder(self.engine, self.config, self.loader.tokenizer)

    def begin(self, state: TrainState) -> None:
        """Evaluate the loaded model and write evaluation_before.json."""
        self.write_evaluation(BEFORE, state, self._measure(max_tokens=None))

    def fit(self, trainer: Trainer) -> None:
        """Train on the loader's batches until the run is finished or stopped, see `train_step`."""
        dims = self.engine.dims
        with trainer.running():
            while trainer.unfinished:
                step = trainer.begin_step()
                batches = self.loader.micro_batches(step.first_sample, step.batch_size, dims.data_rank, dims.data_size)
                trainer.end_step(step, self.train_step(trainer.watchdog.batches(batches), step))

    def train_step(self, batches: Iterator[PairBatch], step: Step) -> StepResult:
        """Update the model on the micro-batches of one step.

        With several micro-batches, the loss needs the vectors of all of them before the first backward pass. A first
        pass without gradients computes the vectors; the loss gives the gradients with respect to them; a second pass
        starts from these gradients (GradCache, arXiv 2101.06983). Both passes start with the same random state, so that
        dropout masks agree.
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
        """See `Stage.evaluate`: held-out pairs with at most `stage.eval_tokens`, and the scored pairs."""
        values = self._measure(self.config.stage.eval_tokens)
        return {f"validation_{name}": values[name] for name in ("loss", "mrr", "spearman") if name in values}

    def finish(self, state: TrainState) -> None:
        """Evaluate the trained model on all held-out pairs and write evaluation.json."""
        self.write_evaluation(AFTER, state, self._measure(max_tokens=None))

    def _measure(self, max_tokens: int | None) -> dict[str, float]:
        """Metrics: loss, search among `embed.candidates` held-out documents, rank correlation with scores."""
        pairs, values = self._held_out(max_tokens), {}
        if pairs:
            queries, _ = self.embedder.vectors([pair.query for pair in pairs], "query")
            positives, _ = self.embedder.vectors([pair.positive for pair in pairs], "document")
            if not (np.isfinite(queries).all() and np.isfinite(positives).all()):
                raise TrainingDiverged(
                    "vectors of held-out pairs are not finite: continue from an earlier checkpoint with optim.lr below"
                    f" {self.config.optim.lr:g}"
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
        """At most MEASURED_BLOCKS x `embed.candidates` held-out pairs of at most `max_tokens`, the same on every call.

        They are a random sample, because neighbouring pairs of a file come from the same repository or set.
        """
        pairs, count = self.loader.pairs["validation"], MEASURED_BLOCKS * self.config.embed.candidates
        if max_tokens is not None:
            count = min(count, max(2, max_tokens // self.loader.sample_tokens))
        return [pairs[index] for index in permutation(len(pairs), self.config.seed)[:count]]

    def _loss(self, queries: np.ndarray, positives: np.ndarray, pairs: Sequence[Pair]) -> tuple[float, float]:
        """Mean loss of held-out pairs in blocks of `embed.candidates`, and the temperature.

        queries, positives: float32 [n, width].
        """
        texts = torch.from_numpy(np.stack((queries, positives)))
        ids = torch.tensor([[pair.text_ids[kind] for pair in pairs] for kind in (0, 1)])
        size, total = self.config.embed.candidates, torch.zeros(5)
        for block, block_ids in zip(texts.split(size, 1), ids.split(size, 1), strict=True):
            total += contrastive_gradients(block, block_ids, self.config.embed, None)[1]
        return float(total[0] / total[1]), float(total[4] / total[1])
