"""Continuous batching: many prompts are continued together, each with its own settings; rows join and leave any time.

A step is one pass through the model. It generates one token for every active row and reads the prompts of rows that
join. A long prompt is read in chunks, one per step, so that the other rows do not wait for the whole prompt.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megagpt.data.batch import send
from megagpt.errors import TrainingDiverged
from megagpt.model.kv_cache import SPARE_COLUMNS, JointPass, KVCache, Pass
from megagpt.model.prefix_store import LEAST_SHARED, PrefixStore, shared_tokens
from megagpt.model.row import Alternatives, Row
from megagpt.model.sampling import choose_tokens, penalize
from megagpt.model.staged_model import StagedModel

LOGITS = 1 << 24
"""Most logits that a step computes for tokens of prompts: 64 MiB in float32."""


class Written(NamedTuple):
    """A token that a step added to a row."""

    row: Row
    token: int
    text: str
    """The text that becomes final with this token, see `TextStream`."""
    model_logprob: float
    """Log-probability of the token before bias, penalties and temperature if `row.alternatives` is set, else NaN."""
    alternatives: Alternatives
    """The likeliest tokens, as many as `row.alternatives` says."""


class _Reader(NamedTuple):
    """A row whose prompt, or a part of it, is read in a step."""

    row: Row
    count: int
    """Number of tokens to read."""
    source: Row | Tensor | None
    """Source of the keys and values of the tokens before these: an active row with the same beginning, or the keys and
    values, [layers, 2, groups, read, D]; None if there are none or they are in the cache of chunks."""

    @property
    def joins(self) -> bool:
        """Whether this completes the prompt."""
        return self.row.read + self.count == len(self.row.prompt)

    @property
    def logits(self) -> int:
        """Number of tokens whose logits are computed."""
        return 1 if self.row.prompt_alternatives is None else self.count


class ContinuousBatch:
    """Continues rows with this rank's chunks of a model in evaluation mode (`for_generation`).

    All ranks that share the model must make the same calls; they get the same results.
    """

    def __init__(
        self,
        model: StagedModel,
        rows: int,
        columns: int | None = None,
        chunk_tokens: int | None = None,
        prefixes: PrefixStore | None = None,
        least_joining: int = 1,
    ) -> None:
        """At most `rows` rows are active at the same time.

        columns: columns of the cache, if the length of the longest row is known; None: the cache grows when needed.
        chunk_tokens: most tokens of prompts in a step; None: no limit. prefixes: store of finished rows, whose keys and
        values are reused by rows that begin with the same tokens. least_joining: number of free places that rows wait
        for before they join.
        """
        self.model, self.rows, self.least_joining = model, rows, least_joining
        self.chunk_tokens, self.prefixes = chunk_tokens or model.window * rows, prefixes
        width = model.window + SPARE_COLUMNS if columns is None else columns
        self.cache = KVCache(model.layers, rows, width, model.device, grows=columns is None)
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []
        """The rows that are being continued; the index is the row of the cache."""
        self.reading: Row | None = None
        """The row whose long prompt is being read in chunks."""
        self._chunks: KVCache | None = None  # keys and values of `reading`
        self.prompt_tokens = self.reused_tokens = self.new_tokens = 0
        """Totals: tokens of prompts, tokens of prompts whose keys and values were reused, and generated tokens."""

    @property
    def busy(self) -> bool:
        """Whether any row is active, waiting or being read."""
        return bool(self.active or self.waiting or self.reading)

    def add(self, row: Row) -> None:
        """Continue `row` as soon as a place is free."""
        self.waiting.append(row)

    def cancel(self, row: Row) -> None:
        """Remove `row` and free its place at once; a row that has ended is ignored."""
        if row in self.active:
            self._drop([self.active.index(row)])
        elif row is self.reading:
            self.reading = self._chunks = None
        elif row in self.waiting:
            self.waiting.remove(row)

    @torch.no_grad()
    def step(self) -> list[Written]:
        """Generate one token for every active row and every row that joins; [] if only a chunk of a prompt was read.

        Raises TrainingDiverged when logits are not finite.
        """
        readers = self._admit()
        # The hook that lets Megatron-Core run without CUDA takes longer than a small operation itself.
        with torch._C.DisableTorchFunction():
            tokens, current = self._begin(readers)
            logits = self.model.forward(self.cache.tensor(tokens), current)
            lasts = list(range(len(self.active)))
            first = len(lasts)
            for reader in readers:
                if reader.row.prompt_alternatives is not None:
                    self._score_prompt(None if logits is None else logits[first : first + reader.count], reader)
                first += reader.logits
                reader.row.read += reader.count
                if reader.row.read == len(reader.row.prompt):
                    self.active.append(reader.row)
                    lasts.append(first - 1)
            if not self.active:
                return []
            if logits is not None and first > len(lasts):
                logits = logits[self.cache.tensor(lasts)]
            written = self._written(self._choose(logits))
            if ended := [place for place, row in enumerate(self.active) if row.finish_reason is not None]:
                self._drop(ended)
        return written

    def _admit(self) -> list[_Reader]:
        """The rows whose prompts are read in the next step. Only the first may need further steps; the others join."""
        readers: list[_Reader] = []
        tokens, logits = self.chunk_tokens, max(1, LOGITS // self.model.tokenizer.vocab_size)

        def take(row: Row, source: Row | Tensor | None) -> bool:
            """Let a row read as much as the limits allow; False if it must wait for the readers before it."""
            nonlocal tokens, logits
            left = len(row.prompt) - row.read
            most = tokens if row.prompt_alternatives is None else min(tokens, logits)
            if left > most and readers:
                return False
            readers.append(_Reader(row, min(left, most), source))
            tokens -= readers[-1].count
            logits -= readers[-1].logits
            return True

        if self.reading is not None:
            take(self.reading, None)
        free = self.rows - len(self.active) - len(readers)
        waits = free < self.least_joining
        while self.waiting and free and not waits and all(reader.joins for reader in readers):
            row = self.waiting[0]
            row.read, source = self._find(row)
            others = [reader.row.prompt_array for reader in readers]
            if self._reuses(row) and any(
                shared_tokens(row.prompt_array[:-1], other) >= row.read + LEAST_SHARED for other in others
            ):
                break  # in the next step it can copy the keys and values of that reader
            if not take(row, source):
                break
            self.waiting.popleft()
            free -= 1
            self.prompt_tokens += len(row.prompt)
            self.reused_tokens += row.read
        return readers

    def _reuses(self, row: Row) -> bool:
        return self.prefixes is not None and row.prompt_alternatives is None

    def _find(self, row: Row) -> tuple[int, Row | Tensor | None]:
        """Number of first tokens of a prompt that can be reused, and their source: a row, or keys and values."""
        if not self._reuses(row):
            return 0, None
        best, source = self.prefixes.find(row.prompt_array)
        for other in self.active:
            shared = shared_tokens(row.prompt_array[:-1], other.prompt_array)
            if shared >= max(best + 1, LEAST_SHARED):
                best, source = shared, other
        return best, source

    def _begin(self, readers: list[_Reader]) -> tuple[list[int], Pass | JointPass]:
        """The tokens of the next step (active rows first, then readers) and its pass."""
        joining = [reader for reader in readers if reader.joins]
        lengths = [len(reader.row.prompt) for reader in joining]
        parts, tokens = [], [row.tokens[-1] for row in self.active]
        if joining:
            self.cache.reserve(len(joining), max(lengths))
        held = [self._held(reader) for reader in readers]
        if self.active:
            parts.append(self.cache.begin_tokens())
        if len(readers) > len(joining):
            parts.append(self._begin_chunk(readers[0], held[0]))
        if joining:
            part = self.cache.begin_prompts(lengths, held[len(readers) - len(joining) :])
            parts.append(self._asking(part, joining))
            if self.reading is joining[0].row:
                self.reading = self._chunks = None
        for row, count, _ in readers:
            tokens += row.prompt[row.read : row.read + count]
        return tokens, parts[0] if len(parts) == 1 else JointPass(parts)

    def _held(self, reader: _Reader) -> Tensor | None:
        """Keys and values of the tokens that a reader's row has read, [layers, 2, groups, n, D], or None."""
        if isinstance(reader.source, Row):
            return self.cache.of_row(self.active.index(reader.source), reader.row.read)
        if reader.row is self.reading:
            return self._chunks.of_row(0, reader.row.read)
        return reader.source

    def _begin_chunk(self, reader: _Reader, held: Tensor | None) -> Pass:
        """A pass over a chunk of a prompt that is not its last one, in the cache of chunks."""
        if self.reading is None:
            self.reading = reader.row
            self._chunks = KVCache(self.model.layers, 1, len(reader.row.prompt), self.cache.device)
            return self._asking(self._chunks.begin_prompts([reader.row.read + reader.count], [held]), [reader])
        return self._asking(self._chunks.begin_tokens(reader.count), [reader])

    def _asking(self, part: Pass, readers: list[_Reader]) -> Pass:
        """The pass over the readers' tokens, with the places whose logits they need."""
        if all(reader.logits == 1 for reader in readers):
            return part
        asked, first = [], 0
        for reader in readers:
            first += reader.count
            asked += range(first - reader.logits, first)
        return replace(part, asked=self.cache.tensor(asked))

    def _choose(self, logits: Tensor | None) -> list[list[float]]:
        """Next token and log-probability of every active row; one rank chooses and sends them to the whole replica.

        If any row wants alternatives, each item also has the log-probability of the token under the unmodified logits,
        the ids of the alternatives (the largest number that any row wants), and their log-probabilities.
        """
        rows = self.active
        wanted = [row.alternatives for row in rows if row.alternatives is not None]
        count = min(max(wanted, default=0), self.model.tokenizer.vocab_size)
        shape = len(rows), 2 + (1 + 2 * count if wanted else 0)
        choice = torch.empty(shape, dtype=torch.float64, device=self.cache.device)  # float64 holds token ids exactly
        if logits is not None and self.model.groups.tp.rank() == 0:
            numbers = torch.from_numpy(np.array([row.uniforms[len(row.tokens)] for row in rows]))
            settings = [row.settings for row in rows]
            choice[:, 0], choice[:, 1] = choose_tokens(
                self._adjusted(logits),
                send(numbers, self.cache.device),
                [each.temperature for each in settings],
                [each.top_k for each in settings],
                [each.top_p for each in settings],
            )
            if wanted:
                choice[:, 2:] = _own_logprobs(logits, choice[:, 0].long(), count)
        self.model.share(choice)
        return choice.tolist()  # the step's only synchronisation with the device

    def _adjusted(self, logits: Tensor) -> Tensor:
        """Logits [B, V] of the active rows after their bias and penalties."""
        shifts = [row.shift(logits[0]) for row in self.active]
        if places := [place for place, shift in enumerate(shifts) if shift is not None]:
            logits = logits.index_add(0, self.cache.tensor(places), torch.stack([shifts[place] for place in places]))
        seen = [row.seen(logits[0]) for row in self.active]
        if places := [place for place, tokens in enumerate(seen) if tokens is not None]:
            penalties = torch.tensor([[self.active[place].settings.repetition_penalty] for place in places])
            where, tokens = self.cache.tensor(places), torch.stack([seen[place] for place in places])
            logits = logits.index_copy(0, where, penalize(logits[where], tokens, send(penalties, logits.device)))
        return logits

    def _score_prompt(self, logits: Tensor | None, reader: _Reader) -> None:
        """Store log-probabilities and alternatives of the prompt's next tokens, given logits [n, V] of those read."""
        row, first = reader.row, reader.row.read + 1
        targets = row.prompt[first : first + reader.count]
        if not targets:
            return
        count = min(row.prompt_alternatives, self.model.tokenizer.vocab_size)
        scores = torch.empty(len(targets), 1 + 2 * count, dtype=torch.float64, device=self.cache.device)
        if logits is not None and self.model.groups.tp.rank() == 0:
            scores.copy_(_own_logprobs(logits[: len(targets)], self.cache.tensor(targets), count))
        self.model.share(scores)
        for own, *found in scores.tolist():
            if math.isnan(own):
                raise TrainingDiverged("the model's logits are not finite: load an earlier checkpoint")
            row.prompt_scores.append((own, _alternatives(found, count)))

    def _written(self, choice: list[list[float]]) -> list[Written]:
        """Append the chosen tokens (see `_choose`) to the active rows."""
        written = []
        for row, (token, logprob, *own) in zip(self.active, choice, strict=True):
            text = row.advance(int(token), logprob, self.model.tokenizer)
            asks = row.alternatives is not None
            found = _alternatives(own[1:], row.alternatives) if asks else ()
            written.append(Written(row, int(token), text, own[0] if asks else math.nan, found))
        self.new_tokens += len(written)
        return written

    def _drop(self, places: list[int]) -> None:
        """Remove active rows, after storing their keys and values for later rows with the same beginning."""
        if self.prefixes is not None:
            for place in places:
                row = self.active[place]
                tokens = [*row.prompt, *row.tokens[:-1]]
                self.prefixes.keep(tokens, self.cache.of_row(place, len(tokens)))
        order = self.cache.drop(places)
        self.active = [self.active[place] for place in order]


def _own_logprobs(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Float64 [n, 1 + 2 count]: the log-probability of each token under logits [n, V], the ids of the `count` likeliest
    tokens, and their log-probabilities."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(count)
    return torch.cat((logprobs.gather(-1, tokens[:, None]).double(), ids.double(), values.double()), 1)


def _alternatives(found: Sequence[float], wanted: int) -> Alternatives:
    """The first `wanted` alternatives of `found`, which has all ids, then all log-probabilities."""
    count = len(found) // 2
    return tuple((int(found[place]), found[count + place]) for place in range(min(wanted, count)))
