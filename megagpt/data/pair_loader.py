"""Batches of pairs for the stage embed: one text per row, with texts of similar length in one micro-batch."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import heappop, heappush

import numpy as np
import torch

from megagpt.config.schema import Config
from megagpt.data.batch import HeldOut
from megagpt.data.loader import load_tokenizer
from megagpt.data.packed import SPLITS, Split, permutation, split_of
from megagpt.data.pairs import Pair, read_pairs
from megagpt.data.ranked_loader import row_length
from megagpt.data.text_batch import TextBatch, TextEncoder
from megagpt.errors import DataError

log = logging.getLogger(__name__)

ABSENT = -1
"""Number in place of a missing text: a pair may have fewer negatives than others."""

MEASURED = 2000
"""Approximate number of pairs whose lengths in tokens are measured at the start."""


@dataclass(frozen=True, kw_only=True)
class PairBatch(TextBatch):
    """Some of the texts of a replica's m pairs; the micro-batches of a step hold all of them."""

    places: torch.Tensor
    """int64 [B]: index of each row's text among the m x K texts: all queries, all positives, all first negatives..."""
    text_ids: torch.Tensor
    """int64 [K, m]: the texts' numbers, see `Pair.text_ids`; ABSENT for missing texts. The same in all micro-batches
    of a step."""
    gradients: torch.Tensor | None = None
    """float32 [B, H]: gradients of the step's loss in the rows' vectors, once they are known."""
    sums: torch.Tensor | None = None
    """float32 [n]: this micro-batch's share of loss, count and metrics, once they are known."""

    def with_step(self, gradients: torch.Tensor, sums: torch.Tensor) -> "PairBatch":
        """This batch with the step's `gradients` and `sums`."""
        return dataclasses.replace(self, gradients=gradients, sums=sums)


class PairLoader:
    """Batches of a run on pairs. A batch is a function of the seed and of sample numbers, in every layout.

    A sample is a pair. An epoch is a permutation of all pairs, in batches that hold no document twice: a pair whose
    document is already in the batch waits for the next batch, and an epoch leaves out the pairs that remain at its end.
    A step divides its pairs among replicas by length, so that all replicas have equal work. A replica sorts its texts
    by length, so that its micro-batches have little padding. With pipeline parallelism, all micro-batches of a step
    have one shape.
    """

    def __init__(self, config: Config) -> None:
        """Read all pairs. Raises DataError when they do not make a batch."""
        self.config = config
        self.tokenizer = load_tokenizer(config)
        self.encoder = TextEncoder(config.embed, config.model.sequence_length, self.tokenizer)
        self.pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
        for pair in read_pairs(config.data.pairs):
            self.pairs[split_of(pair.split_key, config.data.split)].append(pair)
        self._check()
        self.sample_tokens = self._mean_tokens()
        self.texts_per_pair = 2 + config.embed.hard_negatives
        self._batches_of = lru_cache(maxsize=2)(self._epoch)
        self._number_of_batches = cache(lambda epoch: len(self._batches_of(epoch)))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._pending: dict[tuple[int, ...], Future[list[PairBatch]]] = {}

    @property
    def pairs_per_epoch(self) -> int:
        """Number of pairs in the batches of the first epoch."""
        return self._batches_of(0).size

    def micro_batches(
        self, first_sample: int, global_batch_size: int, data_parallel_rank: int, data_parallel_size: int
    ) -> Iterator[PairBatch]:
        """The micro-batches of one rank in the step that trains on samples first_sample .. + global_batch_size - 1.

        A background thread prepares the next step.
        """
        place = (global_batch_size, data_parallel_rank, data_parallel_size)
        now, then = (first_sample, *place), (first_sample + global_batch_size, *place)
        ready = self._pending.pop(now, None) or self._reader.submit(self._step, *now)
        self._pending = {then: self._reader.submit(self._step, *then)}
        yield from ready.result()

    def evaluation_bytes(self, split: Split, max_tokens: int | None, part: int = 0, parts: int = 1) -> int:
        """0: no text is predicted."""
        return 0

    def evaluation_batches(
        self, split: Split, max_tokens: int | None, data_parallel_rank: int = 0, data_parallel_size: int = 1
    ) -> HeldOut:
        """No batches: `megagpt.stages.embed` evaluates held-out pairs by their vectors."""
        return HeldOut(0, lambda number: None)

    def _check(self) -> None:
        for split, share in zip(SPLITS, self.config.data.split, strict=True):
            if share and not self.pairs[split]:
                total = sum(map(len, self.pairs.values()))
                raise DataError(
                    f"none of the {total} pairs is in the {split} split, to which data.split gives {share:g}: raise its"
                    " share, or set it to 0. A file of `megagpt data pairs --split train` has no pairs of other splits"
                    " and goes with data.split=[1,0,0]"
                )
        train, wanted = self.pairs["train"], self.config.optim.global_batch_size
        documents = {pair.document for pair in train if pair.document is not None}
        usable = len(documents) + sum(pair.document is None for pair in train)
        if usable < wanted:
            what = f"{usable} documents" if documents else f"{len(train)} pairs"
            raise DataError(
                f"the training split has {what}, but a batch takes optim.global_batch_size ({wanted}) pairs, of"
                " different documents: use more pairs, or lower it"
            )
        log.info("%d pairs to train on, %d to validate on", len(train), len(self.pairs["validation"]))
        wanted, having = self.config.embed.hard_negatives, sum(bool(pair.negatives) for pair in train)
        if wanted and not having:
            raise DataError(
                f"embed.hard_negatives is {wanted}, but none of the {len(train)} training pairs has negatives: set it"
                " to 0, or use pairs with negatives"
            )
        if having:
            used = f"up to {wanted} of each are used" if wanted else "embed.hard_negatives is 0, so they are not used"
            log.info("%d pairs have negatives of their own; %s", having, used)

    def _mean_tokens(self) -> int:
        """Mean number of tokens per pair, rounded up. Warns about texts that are cut at their end."""
        step = max(1, len(self.pairs["train"]) // MEASURED)
        sampled = self.pairs["train"][::step]
        tokens = 0
        for side, texts in (
            ("query", [pair.query for pair in sampled]),
            ("document", [pair.positive for pair in sampled]),
            ("document", [text for pair in sampled for text in self._negatives(pair)]),
        ):
            rows, cut = self.encoder.encode(texts, side)
            tokens += sum(map(len, rows))
            if cut.any():
                log.warning(
                    "%d of %d sampled texts (%s) are longer than %d tokens (embed.max_tokens) and lose their ends",
                    cut.sum(),
                    len(texts),
                    side,
                    self.encoder.max_tokens,
                )
        return -(-tokens // len(sampled))

    def _negatives(self, pair: Pair) -> tuple[str, ...]:
        return pair.negatives[: self.config.embed.hard_negatives]

    def _epoch(self, epoch: int) -> np.ndarray:
        """The pairs of an epoch's batches, int64 [batches, batch size].

        A batch takes the first remaining pairs of the permutation, at most one per document. So a heap with the first
        remaining pair of each document is enough; its successor enters the heap after the batch.
        """
        size, pairs = self.config.optim.global_batch_size, self.pairs["train"]
        order = permutation(len(pairs), self.config.seed, epoch).tolist()
        successors: list[int | None] = [None] * len(order)
        latest: dict[str, int] = {}
        first: list[int] = []  # ascending, and so a heap
        for place, index in enumerate(order):
            document = pairs[index].document
            if document in latest:
                successors[latest[document]] = place
            else:
                first.append(place)
            if document is not None:
                latest[document] = place
        batches = []
        while len(first) >= size:
            places = [heappop(first) for _ in range(size)]
            batches.append([order[place] for place in places])
            for place in places:
                if successors[place] is not None:
                    heappush(first, successors[place])
        left_out = len(order) - size * len(batches)
        if left_out >= size:
            log.info("epoch %d leaves out %d of %d pairs: of too few documents", epoch, left_out, len(pairs))
        return np.array(batches)

    def batch(self, first_sample: int) -> np.ndarray:
        """The training pairs of the batch that begins with a sample, int64 [batch size]."""
        number, epoch = first_sample // self.config.optim.global_batch_size, 0
        while number >= self._number_of_batches(epoch):
            number, epoch = number - self._number_of_batches(epoch), epoch + 1
        return self._batches_of(epoch)[number]

    def _step(self, first_sample: int, size: int, rank: int, replicas: int) -> list[PairBatch]:
        """All micro-batches of a replica in a step."""
        chosen = [self.pairs["train"][index] for index in self.batch(first_sample)]
        chosen.sort(key=lambda pair: -len(pair.query) - len(pair.positive))
        return self.batches_of_pairs(chosen[rank::replicas])

    def batches_of_pairs(self, pairs: Sequence[Pair]) -> list[PairBatch]:
        """Micro-batches of all texts of the pairs; each has as many rows as `parallel.micro_batch_size` pairs have."""
        rows = self.encoder.encode([pair.query for pair in pairs], "query")[0]
        rows += self.encoder.encode([pair.positive for pair in pairs], "document")[0]
        text_ids = [[pair.text_ids[kind] for pair in pairs] for kind in (0, 1)]
        for number in range(self.config.embed.hard_negatives):
            found = [self._negatives(pair)[number : number + 1] for pair in pairs]
            encoded = iter(self.encoder.encode([text for texts in found for text in texts], "document")[0])
            rows += [next(encoded) if texts else np.array([self.tokenizer.end_of_text_id]) for texts in found]
            text_ids.append(
                [pair.text_ids[2 + number] if texts else ABSENT for pair, texts in zip(pairs, found, strict=True)]
            )
        return self._sorted_batches(rows, torch.tensor(text_ids))

    def _sorted_batches(self, rows: list[np.ndarray], text_ids: torch.Tensor) -> list[PairBatch]:
        count = self.config.parallel.micro_batch_size * self.texts_per_pair
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        longest, batches = len(rows[order[0]]), []
        for first in range(0, len(order), count):
            places = order[first : first + count]
            if self.config.parallel.pipeline_parallel_size == 1:
                longest = len(rows[places[0]])
            batch = self.encoder.batch([rows[place] for place in places], count, row_length(longest, self.config))
            values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
            batches.append(PairBatch(**values, places=torch.tensor(places), text_ids=text_ids))
        return batches
