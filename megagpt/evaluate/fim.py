"""Evaluates filling in lines or words of held-out documents, compared with continuing the text before them.

A cut divides a window of held-out tokens into three parts: the middle is a line with the newline before it, or a word
with the space before it; the prefix is the text before it, the suffix the text after it. With lines this is the
single-line infilling of Bavarian et al. (arXiv 2207.14255), on documents of the corpus. Each part is tokenized as it is
within the whole text, so that the prefix has no unusual tokens for a left-to-right model.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megagpt.data.batch import Batch
from megagpt.data.chat import Example
from megagpt.data.fim import fim_prompt, units_within
from megagpt.data.loader import PretrainLoader
from megagpt.data.packed import PackedCorpus, Split, hashes
from megagpt.data.packing import batch_of_rows
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from megagpt.evaluate.held_out import mean_loss
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel.engine import Engine

_STREAM = 3  # documents, windows and FIM training samples use the random streams 0 to 2 of (seed, number)
_TRIES = 20  # windows to try per requested cut, because some contain no whole line
_SPARE = 16  # tokens kept free in a window for sentinels, end-of-text and a different tokenization of the parts


@dataclass(frozen=True)
class Cut:
    """A text in three parts, and their order in the prompt."""

    prefix: str
    middle: str
    suffix: str
    spm: bool
    """True: the suffix comes before the prefix (SPM); False: after it (PSM)."""


def longest_middle(sequence_length: int) -> int:
    """Largest number of tokens in a middle: an eighth of the context."""
    return sequence_length // 8


def held_out_cuts(loader: PretrainLoader, split: Split, count: int) -> list[Cut]:
    """At most `count` different cuts of the documents of `split`; they depend only on the seed and the corpora.

    Windows are drawn uniformly over the tokens of `split`, and a unit uniformly in its window. Units are those of
    `units_within` with at most `longest_middle` tokens. A fraction of `fim_spm_rate` is in SPM order. Raises DataError
    when there is no cut.
    """
    config = loader.config
    corpora = [corpus for corpus in loader.corpora[split] if corpus.num_tokens]
    starts = np.cumsum([0, *(corpus.num_tokens for corpus in corpora)])
    cuts: dict[tuple[str, str, str], Cut] = {}
    numbers = hashes(3 * _TRIES * count, config.seed, _STREAM).reshape(-1, 3)
    for where, which, order in ((numbers >> np.uint64(11)) / 2.0**53).tolist():
        if len(cuts) == count or not corpora:
            break
        place = int(where * starts[-1])
        corpus = int(np.searchsorted(starts, place, side="right")) - 1
        text = _window(corpora[corpus], loader.tokenizer, place - int(starts[corpus]))
        if parts := _cut(text, which, loader, longest_middle(config.model.sequence_length)):
            cuts.setdefault(parts, Cut(*parts, spm=order < config.data.fim_spm_rate))
    if not cuts:
        raise DataError(
            f"the {split} documents have no {config.data.fim_unit} to fill in: all of them are blank, at an end of "
            f"their document, or longer than an eighth of model.sequence_length ({config.model.sequence_length}); set "
            "stage.fim_cuts=0 to train without these metrics"
        )
    return list(cuts.values())


def evaluate_fim(engine: Engine, loader: PretrainLoader, cuts: Sequence[Cut]) -> dict[str, float]:
    """Loss and exact match of the middles, given both sides and given only the prefix. Collective.

    `fim_loss` is the mean loss, in nats, over the tokens of the middles and of end-of-text after each, given both
    sides. `fim_middle_loss` is the mean over the middles only, for comparison with `left_to_right_loss`, which is given
    only the prefix. Exact matches are fractions of cuts for which greedy decoding generates the middle: followed by
    end-of-text if given both sides, up to the end of the line or word if given only the prefix.
    """
    tokenizer, end = loader.tokenizer, loader.tokenizer.end_of_text_id
    both = [fim_prompt(tokenizer, cut.prefix, cut.suffix, cut.spm) for cut in cuts]
    before = [[*tokenizer.start_ids, *tokenizer.encode_part(cut.prefix)] for cut in cuts]
    middles = [tokenizer.encode_part(cut.middle) for cut in cuts]
    asked = {
        "fim_loss": (both, [[*middle, end] for middle in middles]),
        "fim_middle_loss": (both, middles),
        "left_to_right_loss": (before, middles),
    }
    losses = {
        name: _loss(engine, loader, [_example(*pair) for pair in zip(prompts, wanted, strict=True)])
        for name, (prompts, wanted) in asked.items()
    }
    generator = Generator(engine.modules, loader.config, tokenizer)
    limit = longest_middle(loader.config.model.sequence_length) + 1  # with the end-of-text, or the next newline
    settings = GenerationConfig(max_new_tokens=limit, temperature=0)
    filled = generator.generate(both, settings)
    continued = generator.generate(before, settings)
    return {
        "fim_cuts": len(cuts),
        **losses,
        "fim_exact_match": _share(
            completion.finish_reason == "end_of_text" and completion.text == cut.middle
            for completion, cut in zip(filled, cuts, strict=True)
        ),
        "left_to_right_exact_match": _share(
            _first_unit(completion.text, loader.config.data.fim_unit) == cut.middle
            for completion, cut in zip(continued, cuts, strict=True)
        ),
    }


def _window(corpus: PackedCorpus, tokenizer: Tokenizer, start: int) -> str:
    """The text from token `start` to the end of its document, or to the number of tokens that fit the context."""
    length = corpus.sequence_length
    size = length - longest_middle(length) - _SPARE
    tokens = corpus.read(start, max(0, min(size, corpus.num_tokens - start)))
    ends = np.flatnonzero(tokens == tokenizer.end_of_text_id)
    tokens = tokens[: ends[0]] if len(ends) else tokens
    return tokenizer.decode_bytes(tokens.tolist()).decode(errors="ignore")


def _cut(text: str, which: float, loader: PretrainLoader, longest: int) -> tuple[str, str, str] | None:
    """`text` in three parts around one of its units, selected by `which` in [0, 1); None if no unit fits."""
    places = units_within(text, loader.config.data.fim_unit)
    places = [place for place in places if len(loader.tokenizer.encode(text[slice(*place)])) <= longest]
    if not places:
        return None
    first, last = places[int(which * len(places))]
    return text[:first], text[first:last], text[last:]


def _first_unit(text: str, unit: str) -> str:
    """The line after a newline, or the word after a space, at the start of `text`; "" if there is none."""
    match = re.match(r"\n[^\n]*" if unit == "line" else r" [A-Za-z]+", text)
    return match[0] if match else ""


def _example(prompt: list[int], wanted: list[int]) -> Example:
    return Example(np.array([*prompt, *wanted]), np.arange(len(prompt) + len(wanted)) >= len(prompt))


def _loss(engine: Engine, loader: PretrainLoader, examples: Sequence[Example]) -> float:
    return mean_loss(engine, list(_batches(engine, loader, examples))).loss


def _batches(engine: Engine, loader: PretrainLoader, examples: Sequence[Example]) -> Iterator[Batch]:
    """This replica's share of the examples, one per row; every replica has the same number of batches."""
    dims, size = engine.dims, loader.config.parallel.micro_batch_size
    for first in range(0, len(examples), size * dims.data_size):
        begin = first + dims.data_rank * size
        rows = [[example] for example in examples[begin : begin + size]]
        yield batch_of_rows(rows + [[]] * (size - len(rows)), loader.config.model.sequence_length, loader.tokenizer)


def _share(matches: Iterator[bool]) -> float:
    return float(np.mean(list(matches)))
