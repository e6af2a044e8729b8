"""Log-probabilities of given continuations of given contexts; prefixes that requests share are computed once.

Evaluations ask for many continuations of few contexts: the choices of a question continue the same prompt, and prompts
begin with the same demonstrations. All requests form a tree of tokens (`token_tree`). Each token of the tree goes
through the model once; the keys and values of a stem stay in a pool until the last row that continues it is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.data.batch import send
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError, TrainingDiverged
from megagpt.model.generation import Generator
from megagpt.model.gpt import GPT
from megagpt.model.kv_cache import tokens_within
from megagpt.model.staged_model import for_generation
from megagpt.model.token_tree import Row, token_rows
from megagpt.model.tree_pass import PlacedRow, TokenPool, TreePass
from megagpt.model.tree_schedule import passes

LOGITS = 1 << 24
"""Most logits that a rank holds at the same time: 64 MiB in float32."""
IN_FLIGHT = 16
"""Number of passes of a pipeline after which results are copied to the host. Before that, the first pipeline stages can
already work on the next passes."""

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation, at least one each."""


class Scores(NamedTuple):
    """The model's scores of one continuation of n tokens."""

    logprobs: np.ndarray
    """float32 [n]: natural log-probability of each token, given the context and the tokens before it."""
    greedy: np.ndarray
    """bool [n]: whether each token is the likeliest one; among equally likely tokens, the lowest id counts."""


@dataclass
class Counts:
    """Counts of requests, and of tokens with and without shared prefixes."""

    requests: int = 0
    """Number of continuations."""
    asked: int = 0
    """Tokens that would go through the model if every request were computed alone."""
    computed: int = 0
    """Tokens that went through the model."""

    @property
    def reused(self) -> float:
        """Share of the `asked` tokens that did not have to be computed again."""
        return 1 - self.computed / self.asked if self.asked else 0.0


class ContinuationScorer:
    """Scores continuations with this rank's chunks of a model.

    All ranks that share the model (tensor and pipeline parallel) must make the same calls, and all get the same
    result. Data-parallel replicas are independent of each other.
    """

    def __init__(
        self,
        modules: list[GPT],
        config: Config,
        tokenizer: Tokenizer,
        batch_tokens: int | None = None,
        prefix_memory: float = 1.0,
    ) -> None:
        """`modules` are this rank's chunks in order (`engine.modules`).

        batch_tokens: approximate number of tokens in a pass; by default 2,048 on a CPU and 16,384 on a GPU.
        prefix_memory: most GiB for the keys and values of stems on each rank; one whole context window always fits.
        Raises ConfigError when the tokenizer has more tokens than the model, or when the model has no logits.
        """
        self.generator = Generator(modules, config, tokenizer)
        self.modules, self.vocab_size = modules, config.model.vocab_size
        self.window, self.device = config.model.sequence_length, self.generator.device
        self.groups = self.generator.groups
        self.batch_tokens = batch_tokens or (16384 if self.device.type == "cuda" else 2048)
        self.kept_tokens = max(self.window, tokens_within(prefix_memory, config, modules[0].config.params_dtype))
        self.counts = Counts()

    def score(self, requests: Sequence[Request], done: Callable[[int], None] = lambda count: None) -> list[Scores]:
        """The scores of each request, in order. `done` is called with the number of requests finished since last time.

        Raises DataError for a request with an empty context or continuation, with more tokens than the context window
        holds, or with an unknown token; TrainingDiverged when logits are not finite.
        """
        sequences = [self._sequence(number, *request) for number, request in enumerate(requests)]
        if not sequences:
            return []
        asked = _Asked(requests, sequences)
        rows = token_rows(sequences, asked.lengths)
        self.counts.requests += len(requests)
        self.counts.asked += sum(map(len, sequences))
        self.counts.computed += sum(len(row.tokens) for row in rows)
        with for_generation(self.modules), torch.no_grad(), torch._C.DisableTorchFunction():
            self._compute(rows, asked, done)
        return asked.scores()

    def _sequence(self, number: int, context: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
        """The tokens of a request that go through the model: all but the last."""
        for part, tokens in (("context", context), ("continuation", continuation)):
            if len(tokens) == 0:
                raise DataError(f"request {number} has an empty {part}: there is nothing to score")
        tokens = np.array([*context, *continuation], dtype=np.int64)
        if len(tokens) > self.window + 1:
            raise DataError(
                f"request {number} has a context of {len(context)} tokens and a continuation of {len(continuation)}, "
                f"but the model's sequence_length of {self.window} takes at most {self.window + 1} together: shorten it"
            )
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise DataError(f"request {number} has a token that is not in 0..{self.vocab_size - 1}")
        return tokens[:-1]

    def _compute(self, rows: list[Row], asked: "_Asked", done: Callable[[int], None]) -> None:
        """Compute all rows and store the results in `asked`."""
        stems = sum(len(row.tokens) for row in rows if row.children)
        layers = sum(len(module.decoder.layers) for module in self.modules)
        pool = TokenPool(layers, max(self.window, min(self.kept_tokens, stems + self.window)))
        waiting: list[tuple[np.ndarray, Tensor]] = []
        together = IN_FLIGHT if self.groups.pp.size() > 1 else 1
        for batch in passes(rows, pool, self.batch_tokens, self.window):
            places, numbers = asked.of(batch)
            wanted, which = np.unique(places, return_inverse=True)
            tokens = self._tensor(np.concatenate([placed.row.tokens for placed in batch]))
            hidden = self.generator.through_stages(tokens, TreePass(pool, batch, wanted, self.device))
            if len(numbers):
                waiting.append((numbers, self._results(hidden, which, asked.targets[numbers])))
            if len(waiting) == together:
                done(self._settle(waiting, asked))
        done(self._settle(waiting, asked))

    def _settle(self, waiting: list[tuple[np.ndarray, Tensor]], asked: "_Asked") -> int:
        """Copy results to the host on all ranks; returns the number of requests that they finish."""
        if not waiting:
            return 0
        results = torch.cat([part for _, part in waiting], 1)
        self.generator.share(results)
        finished = asked.settle(np.concatenate([numbers for numbers, _ in waiting]), results.cpu().numpy())
        waiting.clear()
        return finished

    def _results(self, hidden: Tensor | None, which: np.ndarray, targets: np.ndarray) -> Tensor:
        """Float32 [2, m]: log-probability of each target, and 1 if it is the likeliest token, else 0.

        hidden: [n, H] after the final norm. It is None on all pipeline stages but the last, and the result is then
        undefined. targets: int64 [m]. which: int64 [m], non-decreasing: row of `hidden` that predicts each target.
        """
        results = torch.empty(2, len(targets), device=self.device)
        if hidden is not None:
            piece = max(1, LOGITS * self.groups.tp.size() // self.vocab_size)
            for first in range(0, len(hidden), piece):
                asked = slice(*np.searchsorted(which, (first, first + piece)))
                rows, tokens = self._tensor(which[asked] - first), self._tensor(targets[asked])
                logits = self.modules[-1].vocabulary_logits(hidden[first : first + piece]).float()
                results[0, asked], results[1, asked] = self._judge(logits, rows, tokens)
        return results

    def _judge(self, logits: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of `tokens` after `rows` (int64 [m] both), and whether each is the likeliest token.

        logits: float32 [n, C], this rank's contiguous share of the vocabulary; overwritten.
        """
        columns = logits.shape[-1]
        first = columns * self.groups.tp.rank()
        logits[:, max(0, self.vocab_size - first) :] = -torch.inf  # padding
        largest, likeliest = logits.max(-1)
        local = tokens - first
        mine = (local >= 0) & (local < columns)
        target = logits[rows, local.clamp(0, columns - 1)].masked_fill(~mine, 0.0)
        own, likeliest = largest.clone(), likeliest + first
        self._reduce(largest, dist.ReduceOp.MAX)
        likeliest.masked_fill_(own != largest, self.vocab_size)
        self._reduce(likeliest, dist.ReduceOp.MIN)
        self._reduce(target, dist.ReduceOp.SUM)
        total = logits.sub_(largest[:, None]).exp_().sum(-1)
        self._reduce(total, dist.ReduceOp.SUM)
        return target - (largest + total.log())[rows], likeliest[rows] == tokens

    def _reduce(self, values: Tensor, operation: dist.ReduceOp) -> None:
        if self.groups.tp.size() > 1:
            dist.all_reduce(values, operation, group=self.groups.tp)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return send(torch.from_numpy(values), self.device)


class _Asked:
    """Every continuation token whose score is wanted, in the order of the requests, and the scores so far."""

    def __init__(self, requests: Sequence[Request], sequences: Sequence[np.ndarray]) -> None:
        self.lengths = np.array([len(continuation) for _, continuation in requests])
        self.ends = self.lengths.cumsum()
        self.targets = np.concatenate([np.asarray(continuation, dtype=np.int64) for _, continuation in requests])
        self.logprobs, self.greedy = np.zeros(len(self.targets), np.float32), np.zeros(len(self.targets), bool)
        # Position p of a request's sequence predicts the target with number shift + p.
        self.shifts = self.ends - [len(sequence) for sequence in sequences]
        self.is_last = np.zeros(len(self.targets), bool)
        self.is_last[self.ends - 1] = True

    def of(self, batch: Sequence[PlacedRow]) -> tuple[np.ndarray, np.ndarray]:
        """Places of a pass's tokens that predict targets, non-decreasing, and the numbers of these targets."""
        places, numbers, begin = [], [], 0
        for placed in batch:
            for ask in placed.row.asks:
                run = np.arange(ask.count)
                places.append(begin + ask.offset + run)
                numbers.append(self.shifts[ask.sequence] + ask.depth + run)
            begin += len(placed.row.tokens)
        if not places:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        places, numbers = np.concatenate(places), np.concatenate(numbers)
        order = places.argsort(kind="stable")
        return places[order], numbers[order]

    def settle(self, numbers: np.ndarray, results: np.ndarray) -> int:
        """Store results, [2, m] of `ContinuationScorer._results`; returns the number of requests that they finish.

        Raises TrainingDiverged when a log-probability is not finite.
        """
        logprobs, greedy = results
        if not np.isfinite(logprobs).all():
            raise TrainingDiverged("the model's logits are not finite: load an earlier checkpoint")
        self.logprobs[numbers], self.greedy[numbers] = logprobs, greedy > 0
        return int(self.is_last[numbers].sum())

    def scores(self) -> list[Scores]:
        """The scores of each request."""
        spans = zip(self.ends - self.lengths, self.ends, strict=True)
        return [Scores(self.logprobs[first:end], self.greedy[first:end]) for first, end in spans]
