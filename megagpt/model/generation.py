"""Continuing prompts with a trained model, in any layout: batches, a KV cache, sampling, streaming."""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.data.batch import send
from megagpt.data.fim import fim_prompt
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError, TrainingDiverged
from megagpt.model.gpt import GPT
from megagpt.model.kv_cache import KVCache, Pass
from megagpt.model.sampling import choose_tokens, penalize
from megagpt.model.text_stream import TextStream
from megagpt.model.tree_pass import TreePass

log = logging.getLogger(__name__)

SPARE_COLUMNS = 64
"""Columns of the cache beyond the longest sequence, so that sequences that come later seldom make all others move."""

FinishReason = Literal["end_of_text", "stop", "length", "context"]
"""Why a completion ended: the end-of-text token, a stop string, max_new_tokens, or the end of the context window."""


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen and when a completion ends. Raises ConfigError for a value that makes no sense."""

    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 1.0
    """Divides the logits before sampling; 0 takes the most likely token (greedy decoding)."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 means from all."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens that have this probability together (nucleus sampling)."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and the completion so far less likely above 1, more likely below."""
    stop: tuple[str, ...] = ()
    """The completion ends before the first of these strings that it would contain."""
    seed: int = 0
    """Seed of sampling. A prompt gets the same samples whatever else is generated with it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        require(
            self,
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or a positive number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number (1 changes nothing)"),
            ("stop", all(self.stop), "strings of at least one character"),
        )


def require(settings: object, *rules: tuple[str, bool, str]) -> None:
    """Raises ConfigError for the first field whose rule (its name, whether it holds, the words for it) is broken."""
    for name, holds, words in rules:
        if not holds:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}; it must be {words}")


@dataclass(frozen=True)
class Completion:
    """The model's continuation of one prompt."""

    text: str
    """The new text, without the stop string; bytes that are no UTF-8 are U+FFFD."""
    tokens: list[int]
    """All generated tokens, with those of the stop string or the end-of-text token that ended them."""
    logprobs: list[float]
    """Natural log-probability of each token under the distribution it was drawn from (greedy: at temperature 1)."""
    finish_reason: FinishReason
    """Why it ended."""


@dataclass
class _Sequence:
    """One prompt being continued."""

    index: int
    prompt: list[int]
    uniforms: np.ndarray
    limit: int
    stream: TextStream
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def completion(self) -> Completion:
        return Completion("".join(self.text), self.tokens, self.logprobs, self.finish_reason)


class Generator:
    """Generates with this rank's chunks of a model.

    All ranks that share the model (tensor and pipeline parallel) must make the same calls and read a stream to its
    end; all of them get the same result. Data-parallel replicas are independent of each other.
    """

    def __init__(self, modules: list[GPT], config: Config, tokenizer: Tokenizer, batch_size: int = 32) -> None:
        """`modules` are this rank's chunks in order (`engine.modules`); `batch_size` prompts are continued at a time.

        Raises ConfigError when the tokenizer has more tokens than the model, or the model gives no logits.
        """
        if config.model.head != "tokens":
            raise ConfigError(
                f"the model's head is {config.model.head} (model.head), which generates no text: take the checkpoint of"
                " a language model"
            )
        if tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but model.vocab_size is {config.model.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )
        self.modules, self.tokenizer, self.batch_size = modules, tokenizer, batch_size
        self.window, self.spm = config.model.sequence_length, config.data.fim_spm_rate > 0
        self.groups = modules[0].pg_collection

    @property
    def device(self) -> torch.device:
        """Where the model is now: a model that is used now and then waits in the CPU's memory."""
        return next(self.modules[0].parameters()).device

    def fim_prompt(self, prefix: str, suffix: str) -> list[int]:
        """Token ids after which the model writes the text between the two, in SPM order if it was trained on that.

        Raises DataError when the tokenizer has no tokens for it.
        """
        return fim_prompt(self.tokenizer, prefix, suffix, self.spm)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        settings: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Continue each prompt, a text or token ids; results in the order of the prompts.

        seeds: one for every prompt, instead of that of `settings`; its samples then depend on nothing else.

        An empty prompt starts a new document. A completion does not depend on the other prompts (up to rounding).
        Raises DataError for a prompt that leaves no room in the context window or has an unknown token.
        """
        stream = self.stream(prompts, settings, seeds)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    def stream(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        settings: GenerationConfig,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Like `generate`, but yields (index of the prompt, new text) as it comes and returns the completions.

        The pieces of a prompt, joined, are its completion's text; each holds whole characters.
        """
        if settings.top_k > self.tokenizer.vocab_size and self.groups.tp.rank() == 0:
            log.warning("top_k is %d, but there are %d tokens: all count", settings.top_k, self.tokenizer.vocab_size)
        sequences = self._sequences(prompts, settings, seeds)
        by_length = sorted(sequences, key=lambda sequence: -len(sequence.prompt))  # little padding
        if sequences:
            with for_generation(self.modules):
                yield from self._continue(by_length, settings)
        return [sequence.completion() for sequence in sequences]

    def encode(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        """Token ids of each prompt, a text or token ids; an empty one becomes the end-of-text token.

        Raises DataError for a prompt that leaves no room in the context window or has an unknown token.
        """
        encoded = []
        for index, prompt in enumerate(prompts):
            tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
            tokens = tokens or [self.tokenizer.end_of_text_id]
            if len(tokens) >= self.window:
                raise DataError(
                    f"prompt {index} has {len(tokens)} tokens, but the model's sequence_length of {self.window} takes "
                    f"at most {self.window - 1}, to leave room for a response: shorten it"
                )
            if not all(0 <= token < self.tokenizer.vocab_size for token in tokens):
                raise DataError(f"prompt {index} has a token that is not in 0..{self.tokenizer.vocab_size - 1}")
            encoded.append(tokens)
        return encoded

    def _sequences(self, prompts: Sequence, settings: GenerationConfig, seeds: Sequence[int] | None) -> list[_Sequence]:
        sequences, repeats = [], {}
        for index, tokens in enumerate(self.encode(prompts)):
            limit = min(settings.max_new_tokens, self.window - len(tokens))
            repeat = repeats[tuple(tokens)] = repeats.get(tuple(tokens), -1) + 1
            seed, repeat = (settings.seed, repeat) if seeds is None else (seeds[index], 0)
            uniforms = _uniforms(seed, tokens, repeat, limit)
            sequences.append(_Sequence(index, tokens, uniforms, limit, TextStream(settings.stop)))
        return sequences

    def _continue(self, waiting: list[_Sequence], settings: GenerationConfig) -> Iterator[tuple[int, str]]:
        """Continue the sequences, longest prompts first; the places of those that end go to those that wait."""
        rows, columns = min(self.batch_size, len(waiting)), max(len(s.prompt) + s.limit - 1 for s in waiting)
        layers = sum(len(module.decoder.layers) for module in self.modules)
        cache = KVCache(layers, rows, columns + SPARE_COLUMNS * (rows < len(waiting)), self.device)
        active: list[_Sequence] = []
        seen = None if settings.repetition_penalty == 1 else self._seen([])
        while active or waiting:
            free = rows - len(active)
            if waiting and free >= rows / 4:  # fewer are not worth a pass of their own
                batch, waiting = waiting[:free], waiting[free:]
                active = active + batch
                current = cache.begin_prompts([len(sequence.prompt) for sequence in batch])
                tokens = [token for sequence in batch for token in sequence.prompt]
                seen = None if seen is None else torch.cat((seen, self._seen(batch)))
            else:
                batch = active
                current = cache.begin_tokens()
                tokens = [sequence.tokens[-1] for sequence in batch]
            own = None if seen is None else seen[-len(batch) :]
            # The hook by which Megatron-Core runs without CUDA costs every operation more than a small one takes.
            with torch.no_grad(), torch._C.DisableTorchFunction():
                logits = self.forward(self._tensor(tokens), current)
                choice = self._choose(logits, batch, own, settings)
            if own is not None:
                own.scatter_(1, choice[0].long()[:, None], True)
            for sequence, token, logprob in zip(batch, *choice.tolist(), strict=True):  # the one wait for the device
                if text := self._advance(sequence, int(token), logprob, settings):
                    yield sequence.index, text
            if ended := [row for row, sequence in enumerate(active) if sequence.finish_reason is not None]:
                order = cache.drop(ended)
                active = [active[row] for row in order]
                seen = None if seen is None else seen[self._tensor(order)]

    def _advance(self, sequence: _Sequence, token: int, logprob: float, settings: GenerationConfig) -> str:
        """Add a token to a sequence, and decide whether it ends; returns the text that this settles."""
        if math.isnan(logprob):
            raise TrainingDiverged("the model's logits are not finite: load an earlier checkpoint")
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
        text = sequence.stream.add(self.tokenizer.decode_bytes([token]))
        if sequence.stream.stopped:
            sequence.finish_reason = "stop"
        elif token == self.tokenizer.end_of_text_id:
            sequence.finish_reason = "end_of_text"
        elif len(sequence.tokens) == sequence.limit:
            sequence.finish_reason = "length" if sequence.limit == settings.max_new_tokens else "context"
        if sequence.finish_reason is not None:
            text += sequence.stream.finish()
        sequence.text.append(text)
        return text

    def forward(self, tokens: Tensor, current: Pass) -> Tensor | None:
        """Send the tokens [T] of a pass through all pipeline stages.

        Returns the logits of each row's last token over the real vocabulary, float32 [B, V], on the last pipeline
        stage, and None on the others.
        """
        out = self.through_stages(tokens, current)
        return None if out is None else out[:, : self.tokenizer.vocab_size].float()

    def through_stages(self, tokens: Tensor, current: Pass | TreePass) -> Tensor | None:
        """The same for any pass: what the last chunk returns, on the last pipeline stage."""
        stage, stages, pipeline = self.groups.pp.rank(), self.groups.pp.size(), self.groups.pp
        for module in self.modules:
            if not module.pre_process:
                settings = module.config
                hidden = torch.empty(
                    len(tokens), settings.hidden_size, dtype=settings.pipeline_dtype, device=self.device
                )
                dist.recv(hidden, group=pipeline, group_src=(stage - 1) % stages)
                module.set_input_tensor(hidden)
            out = module(tokens, cache_pass=current)
            if not module.post_process:
                dist.send(out.contiguous(), group=pipeline, group_dst=(stage + 1) % stages)
        return out if self.modules[-1].post_process else None

    def _choose(
        self, logits: Tensor | None, sequences: list[_Sequence], seen: Tensor | None, settings: GenerationConfig
    ) -> Tensor:
        """Next tokens and their log-probabilities, float64 [2, B], chosen on one rank and told to its replica."""
        choice = torch.empty(2, len(sequences), dtype=torch.float64, device=self.device)  # exact for token ids
        if logits is not None and self.groups.tp.rank() == 0:
            if seen is not None:
                logits = penalize(logits, seen, settings.repetition_penalty)
            uniforms = np.array([sequence.uniforms[len(sequence.tokens)] for sequence in sequences])
            uniforms = send(torch.from_numpy(uniforms), self.device)
            choice[0], choice[1] = choose_tokens(logits, uniforms, settings.temperature, settings.top_k, settings.top_p)
        self.share(choice)
        return choice

    def share(self, values: Tensor) -> None:
        """Give all ranks of the replica, in place, what its last pipeline stage has on the first tensor rank."""
        if self.groups.mp.size() > 1:
            dist.broadcast(values, group=self.groups.mp, group_src=self.groups.mp.size() - self.groups.tp.size())

    def _seen(self, sequences: list[_Sequence]) -> Tensor:
        """Bool [B, V], True for the tokens of each prompt."""
        seen = torch.zeros(len(sequences), self.tokenizer.vocab_size, dtype=torch.bool, device=self.device)
        for row, sequence in enumerate(sequences):
            seen[row, self._tensor(sequence.prompt)] = True
        return seen

    def _tensor(self, values: list) -> Tensor:
        return send(torch.tensor(values, dtype=torch.int64), self.device)


def _uniforms(seed: int, prompt: list[int], repeat: int, count: int) -> np.ndarray:
    """The random numbers of one completion, float64 [count] in [0, 1): a function of the arguments and no others.

    repeat: how often the same prompt came before in the same call.
    """
    digest = hashlib.sha256(f"{seed}/{repeat}/{prompt}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest))).random(count)


@contextmanager
def for_generation(modules: list[GPT]) -> Iterator[None]:
    """Evaluation mode without sequence parallelism, which cannot split a single token; the weights are the same."""
    training = [module.training for module in modules]
    switched = [
        (holder, name)
        for module in modules
        for holder in (module.config, *module.modules())
        for name in ("sequence_parallel", "reduce_scatter_embeddings")
        if getattr(holder, name, False) is True
    ]
    try:
        for holder, name in switched:
            setattr(holder, name, False)
        for module in modules:
            module.eval()
        yield
    finally:
        for holder, name in switched:
            setattr(holder, name, True)
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)
