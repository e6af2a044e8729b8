"""Beam search with the generator's KV cache.

GPT-3 (arXiv 2005.14165, section 2.4) uses it for free-form answers, with 4 beams and a length penalty of 0.6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import TrainingDiverged
from megagpt.model.generation import Generator
from megagpt.model.generation_config import Completion, FinishReason, require
from megagpt.model.kv_cache import KVCache, Pass
from megagpt.model.staged_model import for_generation
from megagpt.model.text_stream import TextStream


@dataclass(frozen=True)
class BeamSearchConfig:
    """Width of the search, length penalty, and the rules by which it ends. Defaults are GPT-3's.

    Raises ConfigError for a value out of range.
    """

    num_beams: int = 4
    """Number of unfinished continuations that are kept after each token. 1 is greedy decoding."""
    max_new_tokens: int = 128
    """Most tokens to generate."""
    length_penalty: float = 0.6
    """Exponent alpha of the length penalty. Values above 0 favour longer continuations."""
    length_penalty_form: Literal["gnmt", "power"] = "gnmt"
    """Divisor of the log-probability of a continuation of N tokens: ((5 + N) / 6)^alpha (gnmt, arXiv 1609.08144, as in
    T5) or N^alpha (power, as in transformers). N counts the end-of-text token and the tokens of a stop string."""
    stop: tuple[str, ...] = ()
    """A continuation ends before the first occurrence of any of these strings."""
    early_stopping: bool | Literal["never"] | None = None
    """Rule by which the search ends, see `beam_search`. None: "never" with gnmt (as T5), False with power (as
    transformers)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        require(
            self,
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("length_penalty", math.isfinite(self.length_penalty), "a number (0 compares log-probabilities alone)"),
            ("length_penalty_form", self.length_penalty_form in ("gnmt", "power"), "gnmt or power"),
            ("stop", all(self.stop), "strings of at least one character"),
            ("early_stopping", self.early_stopping in (None, False, True, "never"), "false, true, never or null"),
        )

    def score(self, logprob: float, length: int) -> float:
        """Score of a continuation: its log-probability divided by its length penalty."""
        base = (5 + length) / 6 if self.length_penalty_form == "gnmt" else length
        return logprob / base**self.length_penalty

    @property
    def rule(self) -> bool | Literal["never"]:
        """`early_stopping` with None resolved. A single beam ends with its first continuation, as in transformers."""
        if self.num_beams == 1:
            return True
        if self.early_stopping is None:
            return "never" if self.length_penalty_form == "gnmt" else False
        return self.early_stopping


def beam_search(
    generator: Generator, prompts: Sequence[str] | Sequence[Sequence[int]], settings: BeamSearchConfig
) -> list[Completion]:
    """The best continuation that beam search finds for each prompt, in the order of the prompts.

    prompts: texts or token ids. In every step each unfinished continuation (beam) of a prompt is extended by every
    token. Among the 2 x num_beams likeliest extensions, the first num_beams unfinished ones become the next beams. An
    extension that ends (by an end-of-text token, a stop string, max_new_tokens or the end of the context window) is
    finished if it is among the num_beams likeliest; otherwise it is dropped. The num_beams finished continuations with
    the best scores are kept, and the best one is the result. The search and `early_stopping` follow transformers:

    - True: the search ends when num_beams continuations have finished.
    - False: it ends when num_beams have finished and the likeliest beam, scored at its present length, is not better
      than the worst of them. With a positive length penalty it may miss a better continuation that is longer.
    - "never": it ends when no beam can become better than the best finished one, at any length up to the limit.

    T5's rule (Mesh TensorFlow) is "never": it bounds a beam by its score at the limit. T5 also lets an extension finish
    that is not among the num_beams likeliest, and takes a continuation that was cut at the limit only if no other one
    finished. GPT-3's paper gives the width and the penalty, but no rule.

    All ranks that share the model must make the same call, and all get the same result. At most `generator.batch_size`
    beams run at the same time, but always all beams of at least one prompt. Raises DataError like `Generator.generate`,
    TrainingDiverged when the logits are not finite.
    """
    searches = [
        _Search(tokens, settings, generator.tokenizer, min(settings.max_new_tokens, generator.window - len(tokens)))
        for tokens in generator.prompts.encode(prompts)
    ]
    by_length = sorted(searches, key=lambda search: -len(search.prompt))  # similar lengths need little padding
    together = max(1, generator.batch_size // settings.num_beams)
    with for_generation(generator.modules):
        for first in range(0, len(searches), together):
            _run(generator, by_length[first : first + together], settings.num_beams)
    return [search.completion() for search in searches]


@dataclass(frozen=True)
class _Beam:
    """A continuation of a prompt, finished or not."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0
    text: bytes = b""
    finish_reason: FinishReason | None = None


@dataclass
class _Search:
    """The search for one prompt's continuation."""

    prompt: list[int]
    settings: BeamSearchConfig
    tokenizer: Tokenizer
    limit: int
    beams: list[_Beam] = field(default_factory=lambda: [_Beam()])
    """Unfinished continuations, the likeliest first; empty when the search is over."""
    finished: list[tuple[float, _Beam]] = field(default_factory=list)
    """(score, continuation) of the finished ones, the best first."""

    def advance(self, tokens: list[list[int]], logprobs: list[list[float]]) -> list[int]:
        """Extend the beams; returns for each new beam the number of the beam that it extends.

        tokens, logprobs: the likeliest next tokens of each beam, and their log-probabilities.
        """
        width = self.settings.num_beams
        candidates = [
            (beam.total + logprob, number, token, logprob)
            for number, beam in enumerate(self.beams)
            for token, logprob in zip(tokens[number], logprobs[number], strict=True)
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        beams, parents = [], []
        for place, (_, number, token, logprob) in enumerate(candidates[: 2 * width]):
            beam = self._extend(self.beams[number], token, logprob)
            if beam.finish_reason is None:
                beams.append(beam)
                parents.append(number)
            elif place < width:
                self.finished.append((self.settings.score(beam.total, len(beam.tokens)), beam))
        self.finished = sorted(self.finished, key=lambda scored: -scored[0])[:width]
        self.beams = beams[:width]
        if self._is_over():
            self.beams = []
        return parents[: len(self.beams)]

    def completion(self) -> Completion:
        """The best continuation."""
        _, best = self.finished[0]
        stream = TextStream(self.settings.stop)
        text = stream.add(best.text) + stream.finish()
        return Completion(text, list(best.tokens), list(best.logprobs), best.finish_reason)

    def _extend(self, beam: _Beam, token: int, logprob: float) -> _Beam:
        tokens, text = (*beam.tokens, token), beam.text + self.tokenizer.decode_bytes([token])
        reason = None
        if any(stop.encode() in text for stop in self.settings.stop):
            reason = "stop"
        elif token in self.tokenizer.end_ids:
            reason = "end_of_text"
        elif len(tokens) == self.limit:
            reason = "length" if self.limit == self.settings.max_new_tokens else "context"
        return _Beam(tokens, (*beam.logprobs, logprob), beam.total + logprob, text, reason)

    def _is_over(self) -> bool:
        """Whether the rule for the end of the search holds, see `beam_search`."""
        settings, full = self.settings, len(self.finished) == self.settings.num_beams
        if not self.beams or settings.rule is True:
            return full or not self.beams
        length = len(self.beams[0].tokens)
        if settings.rule == "never":
            rivals = self.finished[:1]
            length = self.limit if settings.length_penalty > 0 else length
        else:
            rivals = self.finished[-1:] if full else []
        return any(settings.score(self.beams[0].total, length) <= rival for rival, _ in rivals)


def _run(generator: Generator, searches: list[_Search], num_beams: int) -> None:
    """Run all of `searches` together until they are over; each beam is a row of the cache."""
    columns = max(len(search.prompt) for search in searches) + max(search.limit for search in searches) - 1
    cache = KVCache(generator.layers, len(searches) * num_beams, columns, generator.device)
    current = cache.begin_prompts([len(search.prompt) for search in searches])
    tokens = [token for search in searches for token in search.prompt]
    prompt_columns, owners = current.columns.stop, searches
    while True:
        next_tokens, logprobs = _likeliest_tokens(generator, tokens, current, 2 * num_beams)
        rows, first = [], 0
        for search in searches:
            own = slice(first, first + len(search.beams))
            rows += [first + parent for parent in search.advance(next_tokens[own], logprobs[own])]
            first = own.stop
        searches = [search for search in searches if search.beams]
        if not searches:
            return
        before, owners = owners, [search for search in searches for _ in search.beams]
        stay = len(owners) <= len(before) and all(old is new for old, new in zip(before, owners, strict=False))
        cache.reorder(rows, prompt_columns if stay else 0)  # beams of one prompt differ only after the prompt
        current = cache.begin_tokens()
        tokens = [beam.tokens[-1] for search in searches for beam in search.beams]


def _likeliest_tokens(
    generator: Generator, tokens: list[int], current: Pass, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` likeliest next tokens of every row (all tokens if there are fewer), and their log-probabilities."""
    # The hook that lets Megatron-Core run without CUDA takes longer than a small operation itself.
    with torch.no_grad(), torch._C.DisableTorchFunction():
        logits = generator.forward(torch.tensor(tokens, device=generator.device), current)
        shape = (2, current.rows.stop, min(count, generator.tokenizer.vocab_size))  # rows.start is 0
        found = torch.empty(shape, dtype=torch.float64, device=generator.device)  # float64 holds token ids exactly
        if logits is not None:
            found[1], found[0] = logits.log_softmax(-1).topk(shape[-1])
    generator.share(found)
    if found[1].isnan().any():
        raise TrainingDiverged("the model's logits are not finite: load an earlier checkpoint")
    return found[0].long().tolist(), found[1].tolist()
