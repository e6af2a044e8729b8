"""Implements lm-evaluation-harness's model interface, in any layout."""

import dataclasses
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megagpt.config.schema import Config
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.log import progress
from megagpt.model.continuations import ContinuationScorer, Counts
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.model.gpt import GPT

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError('in-context evaluation needs lm-eval: pip install "megagpt[in-context]"') from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from megagpt.model.beam_search import BeamSearchConfig

log = logging.getLogger(__name__)

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""((context, continuation) or None, tokens of the context, tokens of the continuation); the texts are a cache key."""

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
BEAMS = ("num_beams", "length_penalty", "length_penalty_form", "early_stopping")


class MegaGPTLM(TemplateLM):
    """lm-eval's model interface over this rank's chunks of a model; results equal those of lm-eval's `hf` model.

    All ranks must make the same calls, and all get all results. Data-parallel replicas share the requests of a call.
    lm-eval sees one process (`rank` 0, `world_size` 1): its drawn demonstrations depend on the number of prompts built
    before, so prompts would change with the number of ranks if lm-eval distributed the documents.

    Two things differ from `hf`. Names of special tokens in a text are encoded as text. Sampled texts depend only on the
    seed and their prompts, and are sampled from all tokens unless `top_k` is given.
    """

    def __init__(
        self,
        modules: list[GPT],
        config: Config,
        tokenizer: Tokenizer,
        batch_tokens: int | None = None,
        prefix_memory: float = 1.0,
        batch_size: int = 32,
    ) -> None:
        """modules: this rank's chunks in order. batch_tokens and prefix_memory: see `ContinuationScorer`.

        batch_size: number of texts that are generated at the same time. Raises ConfigError like `Generator`.
        """
        super().__init__()
        self.scorer = ContinuationScorer(modules, config, tokenizer, batch_tokens, prefix_memory)
        self.generator = Generator(modules, config, tokenizer, batch_size)
        self.tokenizer, self.max_length = tokenizer, config.model.sequence_length
        self.max_gen_toks = min(256, self.max_length // 2)
        """Largest number of generated tokens, if the task sets none."""
        self.cut_requests = 0
        """Number of requests so far whose context was cut at its beginning, to fit the context window."""
        self.counts = Counts()
        """Work for log-probabilities so far, on all replicas together."""
        self._replicas = self.generator.groups.dp
        self._device = self.generator.device

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token, which also starts a text if there is no bos token."""
        return self.tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int:
        """Id of the token before the first token of a text: as in lm-eval's `hf`, the bos token, else eos."""
        tokenizer = self.tokenizer
        if tokenizer.bos_id is not None:
            return tokenizer.bos_id
        eos = tokenizer.companions.special_tokens.get("eos_token")
        return tokenizer.special_ids.get(eos, tokenizer.end_of_text_id)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's SHA-256."""
        return self.tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, after the model's document start tokens unless `add_special_tokens` is False."""
        start = [] if add_special_tokens is False else self.tokenizer.start_ids
        return [*start, *self.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy decoding generates it) of each request.

        A context that is too long for the context window is cut at its beginning, as in lm-eval's `hf`. Raises
        DataError for a continuation that is empty or longer than the context window.
        """
        pairs, cut = [], 0
        for number, (texts, context, continuation) in enumerate(requests):
            if not continuation or len(continuation) > self.max_length:
                raise DataError(
                    f"the continuation of request {number} has {len(continuation)} tokens; it must have from 1 to the "
                    f"{self.max_length} of the context window{'' if texts is None else f': {texts[1][:80]!r}'}"
                )
            excess = len(context) + len(continuation) - self.max_length - 1
            cut += excess > 0
            pairs.append((context[max(0, excess) :], continuation))
        self._report(cut, len(requests))
        own = self._own_log_probabilities(pairs)
        self.scorer.counts = Counts()
        bar = nullcontext() if disable_tqdm else progress(len(own), "requests", "log-probabilities")
        with bar as shown:
            scores = self.scorer.score(
                [pairs[place] for place in own], (lambda _: None) if shown is None else shown.update
            )
        sums = [(float(score.logprobs.sum(dtype="float64")), bool(score.greedy.all())) for score in scores]
        results = self._of_all_replicas(dict(zip(own, sums, strict=True)))
        self._count(log_it=not disable_tqdm)
        for (texts, _, _), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text; a text longer than the context window is split into lm-eval's windows."""
        windows: list[TokenRequest] = []
        owners = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list["Instance"], disable_tqdm: bool = False) -> list[str]:
        """The text that the model generates after each context, up to end-of-text or the first of the strings `until`.

        gen_kwargs: until, max_gen_toks, do_sample, temperature, top_k, top_p, repetition_penalty, seed, and for beam
        search num_beams, length_penalty, length_penalty_form (power as in transformers, the default, or gnmt) and
        early_stopping. Raises ConfigError for others. A context that leaves no room for max_gen_toks is cut at its
        beginning, as in lm-eval's `hf`.
        """
        groups: dict[GenerationConfig | BeamSearchConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(number)
        cut, own = 0, {}
        for settings, numbers in groups.items():
            prompts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
            room = self.max_length - settings.max_new_tokens
            cut += sum(len(prompt) > room for prompt in prompts.values())
            own[settings] = self._own_prompts({number: prompt[-room:] for number, prompt in prompts.items()})
        self._report(cut, len(requests))
        texts = {}
        bar = nullcontext() if disable_tqdm else progress(sum(map(len, own.values())), "requests", "texts")
        with bar as shown:
            for settings, prompts in own.items():
                texts |= zip(prompts, self._texts(list(prompts.values()), settings), strict=True)
                if shown is not None:
                    shown.update(len(prompts))
        results = self._of_all_replicas(texts)
        for request, text in zip(requests, results, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return results

    def _texts(self, prompts: list[list[int]], settings: "GenerationConfig | BeamSearchConfig") -> list[str]:
        if isinstance(settings, GenerationConfig):
            return [self.tokenizer.without_start(one.text) for one in self.generator.generate(prompts, settings)]
        from megagpt.model.beam_search import beam_search

        return [self.tokenizer.without_start(one.text) for one in beam_search(self.generator, prompts, settings)]

    def _settings(self, gen_kwargs: dict[str, Any]) -> "GenerationConfig | BeamSearchConfig":
        """The settings for `gen_kwargs`. Raises ConfigError for unknown or contradictory ones."""
        options = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        unknown = [name for name in options if name not in ("until", "max_gen_toks", "do_sample", *SAMPLING, *BEAMS)]
        if unknown:
            raise ConfigError(f"generation_kwargs has {', '.join(unknown)}, which generation does not support")
        stop = tuple(text for text in options["until"] if text)
        tokens, sampled = options["max_gen_toks"], options.get("do_sample", False)
        if tokens >= self.max_length:
            raise ConfigError(
                f"max_gen_toks is {tokens}, which leaves no room for a prompt in the model's sequence_length of "
                f"{self.max_length}: lower max_gen_toks"
            )
        if sampled and not options.get("temperature"):
            raise ConfigError("generation_kwargs has do_sample but no temperature above 0")
        if options.get("num_beams", 1) == 1:
            chosen = {name: options[name] for name in SAMPLING if name in options}
            return GenerationConfig(
                max_new_tokens=tokens, stop=stop, **chosen | ({} if sampled else {"temperature": 0.0})
            )
        if sampled or options.get("repetition_penalty", 1) != 1:
            raise ConfigError(
                f"generation_kwargs has num_beams={options['num_beams']} with "
                f"{'do_sample' if sampled else 'repetition_penalty'}: beam search does not support both together"
            )
        from megagpt.model.beam_search import BeamSearchConfig

        chosen = {"length_penalty": 1.0, "length_penalty_form": "power"}
        chosen |= {name: options[name] for name in BEAMS if name in options}
        return BeamSearchConfig(max_new_tokens=tokens, stop=stop, **chosen)

    def _report(self, cut: int, requests: int) -> None:
        self.cut_requests += cut
        if cut:
            log.warning(
                "%d of %d requests are too long for the model's sequence_length of %d: their contexts lose their "
                "beginnings",
                cut, requests, self.max_length,
            )  # fmt: skip

    def _own_log_probabilities(self, pairs: list[tuple[list[int], list[int]]]) -> list[int]:
        """Numbers of the requests that this replica computes: a fair share of tokens, with common prefixes together."""
        tokens = [(*context, *continuation) for context, continuation in pairs]
        order = sorted(range(len(pairs)), key=tokens.__getitem__)
        shares = accumulate(len(tokens[number]) * self._replicas.size() for number in order)
        total = sum(map(len, tokens))
        return [
            number for number, end in zip(order, shares, strict=True) if (end - 1) // total == self._replicas.rank()
        ]

    def _own_prompts(self, prompts: dict[int, list[int]]) -> dict[int, list[int]]:
        """The prompts that this replica continues. Equal prompts stay together, because their samples must differ."""
        distinct = sorted({tuple(prompt) for prompt in prompts.values()}, key=lambda prompt: (len(prompt), prompt))
        own = set(distinct[self._replicas.rank() :: self._replicas.size()])
        return {number: prompt for number, prompt in prompts.items() if tuple(prompt) in own}

    def _of_all_replicas(self, own: dict[int, Any]) -> list[Any]:
        """The results of all requests in order. own: this replica's results, {number of the request: result}."""
        parts: list[Any] = [None] * self._replicas.size()
        dist.all_gather_object(parts, own, group=self._replicas)
        return [result for _, result in sorted(item for part in parts for item in part.items())]

    def _count(self, log_it: bool) -> None:
        """Add the work of all replicas in this call to `counts`."""
        values = torch.tensor(dataclasses.astuple(self.scorer.counts), device=self._device)
        dist.all_reduce(values, group=self._replicas)
        now = Counts(*values.tolist())
        before = dataclasses.astuple(self.counts)
        self.counts = Counts(*(old + new for old, new in zip(before, values.tolist(), strict=True)))
        if log_it and now.requests:
            log.info(
                "%d requests with %d tokens: %d computed, %.1f%% reused",
                now.requests, now.asked, now.computed, 100 * now.reused,
            )  # fmt: skip
