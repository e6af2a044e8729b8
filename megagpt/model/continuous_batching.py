"""Continuing many prompts at once, each with settings of its own: rows join and leave between any two tokens.

A step is one pass through the model: one more token of every row that is being continued, together with the prompts of
rows that join. A long prompt is read in chunks, a chunk a step, so that the others never wait for all of it.
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
"""Logits of prompts' tokens that a step makes, at most: 64 MiB in float32."""


class Written(NamedTuple):
    """A token that a step has added to a row."""

    row: Row
    token: int
    text: str
    """What it settles, see `TextStream`."""
    model_logprob: float
    """The model's own log-probability of it, where the row wants it, else NaN."""
    alternatives: Alternatives
    """As many as the row wants."""


class _Reader(NamedTuple):
    """A row whose prompt a step reads on."""

    row: Row
    count: int
    """Tokens that it reads."""
    source: Row | Tensor | None
    """Where keys and values of what it has read are, if not in chunks: a row that begins alike, or they themselves,
    [layers, 2, groups, read, D]."""

    @property
    def joins(self) -> bool:
        """Whether that is the rest of its prompt."""
        return self.row.read + self.count == len(self.row.prompt)

    @property
    def logits(self) -> int:
        """Number of its tokens whose logits are made."""
        return 1 if self.row.prompt_alternatives is None else self.count


class ContinuousBatch:
    """Continues rows with this rank's chunks of a model, which is in evaluation mode (`for_generation`).

    All ranks that share the model must make the same calls, and get the same results.
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
        """`rows` are continued at a time.

        columns: of the cache, where it is known how long the longest row gets; None: it grows as they come.
        chunk_tokens: of prompts in a step, at most; None: as many as they have. prefixes: rows reuse what others begin
        with alike, and are kept there when they end. least_joining: rows wait until so many places are free.
        """
        self.model, self.rows, self.least_joining = model, rows, least_joining
        self.chunk_tokens, self.prefixes = chunk_tokens or model.window * rows, prefixes
        width = model.window + SPARE_COLUMNS if columns is None else columns
        self.cache = KVCache(model.layers, rows, width, model.device, grows=columns is None)
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []
        """Those that are being continued, by their row of the cache."""
        self.reading: Row | None = None
        """The row whose long prompt is being read in chunks."""
        self._chunks: KVCache | None = None  # its keys and values
        self.prompt_tokens = self.reused_tokens = self.new_tokens = 0
        """Tokens of prompts so far, those of them whose keys and values were there already, and new tokens."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.active or self.waiting or self.reading)

    def add(self, row: Row) -> None:
        """Continue `row` as soon as a place is free."""
        self.waiting.append(row)

    def cancel(self, row: Row) -> None:
        """Forget `row`, whose place is free at once; nothing happens to one that has ended."""
        if row in self.active:
            self._drop([self.active.index(row)])
        elif row is self.reading:
            self.reading = self._chunks = None
        elif row in self.waiting:
            self.waiting.remove(row)

    @torch.no_grad()
    def step(self) -> list[Written]:
        """One more token of every row, and of those that join: none where only a chunk of a prompt is read.

        Raises TrainingDiverged for logits that are not finite.
        """
        readers = self._admit()
        # The hook by which Megatron-Core runs without CUDA costs every operation more than a small one takes.
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
        """The rows that read in the next step; the first may be one that has more to read, others join."""
        readers: list[_Reader] = []
        tokens, logits = self.chunk_tokens, max(1, LOGITS // self.model.tokenizer.vocab_size)

        def take(row: Row, source: Row | Tensor | None) -> bool:
            """Have it read as much as may be; False where others must come first."""
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
                break  # one of them can be copied in the next step
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
        """How many tokens of a prompt some row has read already, and that row, or its keys and values."""
        if not self._reuses(row):
            return 0, None
        best, source = self.prefixes.find(row.prompt_array)
        for other in self.active:
            shared = shared_tokens(row.prompt_array[:-1], other.prompt_array)
            if shared >= max(best + 1, LEAST_SHARED):
                best, source = shared, other
        return best, source

    def _begin(self, readers: list[_Reader]) -> tuple[list[int], Pass | JointPass]:
        """The tokens of the next step and its pass: those of active rows first, then those of readers."""
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
        """Keys and values of what a row has read, [layers, 2, groups, n, D]."""
        if isinstance(reader.source, Row):
            return self.cache.of_row(self.active.index(reader.source), reader.row.read)
        if reader.row is self.reading:
            return self._chunks.of_row(0, reader.row.read)
        return reader.source

    def _begin_chunk(self, reader: _Reader, held: Tensor | None) -> Pass:
        """A pass over a part of a prompt that does not end it, in a cache of its own."""
        if self.reading is None:
            self.reading = reader.row
            self._chunks = KVCache(self.model.layers, 1, len(reader.row.prompt), self.cache.device)
            return self._asking(self._chunks.begin_prompts([reader.row.read + reader.count], [held]), [reader])
        return self._asking(self._chunks.begin_tokens(reader.count), [reader])

    def _asking(self, part: Pass, readers: list[_Reader]) -> Pass:
        """The pass over the readers' tokens, with the logits that they want."""
        if all(reader.logits == 1 for reader in readers):
            return part
        asked, first = [], 0
        for reader in readers:
            first += reader.count
            asked += range(first - reader.logits, first)
        return replace(part, asked=self.cache.tensor(asked))

    def _choose(self, logits: Tensor | None) -> list[list[float]]:
        """Of every active row the next token and its log-probability, chosen on one rank and told to its replica.

        Where a row wants alternatives, there follow the model's own log-probability, the ids of as many alternatives as
        any row wants, and their log-probabilities.
        """
        rows = self.active
        wanted = [row.alternatives for row in rows if row.alternatives is not None]
        count = min(max(wanted, default=0), self.model.tokenizer.vocab_size)
        shape = len(rows), 2 + (1 + 2 * count if wanted else 0)
        choice = torch.empty(shape, dtype=torch.float64, device=self.cache.device)  # exact for token ids
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
        return choice.tolist()  # the one wait for the device

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
        """Note what the model says of the tokens after those read, by these tokens' logits [n, V]."""
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
        """Add the tokens chosen for the active rows, see `_choose`."""
        written = []
        for row, (token, logprob, *own) in zip(self.active, choice, strict=True):
            text = row.advance(int(token), logprob, self.model.tokenizer)
            asks = row.alternatives is not None
            found = _alternatives(own[1:], row.alternatives) if asks else ()
            written.append(Written(row, int(token), text, own[0] if asks else math.nan, found))
        self.new_tokens += len(written)
        return written

    def _drop(self, places: list[int]) -> None:
        """Let active rows go, after keeping what others may begin with."""
        if self.prefixes is not None:
            for place in places:
                row = self.active[place]
                tokens = [*row.prompt, *row.tokens[:-1]]
                self.prefixes.keep(tokens, self.cache.of_row(place, len(tokens)))
        order = self.cache.drop(places)
        self.active = [self.active[place] for place in order]


def _own_logprobs(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """[n, 1 + 2 count]: the log-probability of each token under logits [n, V], then the ids of the likeliest tokens,
    then their log-probabilities."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(count)
    return torch.cat((logprobs.gather(-1, tokens[:, None]).double(), ids.double(), values.double()), 1)


def _alternatives(found: Sequence[float], wanted: int) -> Alternatives:
    """The first of the alternatives in `found`: their ids, then their log-probabilities."""
    count = len(found) // 2
    return tuple((int(found[place]), found[count + place]) for place in range(min(wanted, count)))
