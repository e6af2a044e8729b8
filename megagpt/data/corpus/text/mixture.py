"""Compute weights and epochs of a mixture of corpora from their numbers of tokens."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megagpt.config.home import at_home
from megagpt.config.nearest import nearest
from megagpt.data.files import read_input
from megagpt.errors import ConfigError, DataError

LARGEST_EPOCHS = 4
"""Number of epochs beyond which repeated tokens are worth clearly less than new ones (arXiv 2305.16264)."""


class Corpus(NamedTuple):
    """A corpus to mix."""

    name: str
    path: str
    """Prefix of its .bin and .idx files."""
    tokens: float
    tokenizer: str | None = None
    """SHA-256 of its tokenizer.json, if known."""


class Published(NamedTuple):
    """A row of GPT-3's table."""

    tokens: float
    """Rounded to billions."""
    weight: float
    """Rounded to percents."""
    epochs: float
    """As printed, over 300 billion tokens."""


GPT3 = {
    "common_crawl": Published(410e9, 0.60, 0.44),
    "webtext2": Published(19e9, 0.22, 2.9),
    "books1": Published(12e9, 0.08, 1.9),
    "books2": Published(55e9, 0.08, 0.43),
    "wikipedia": Published(3e9, 0.03, 3.4),
}
"""Table 2.2 of arXiv 2005.14165."""

GPT3_TOKENS = 300e9
RECIPES = {"gpt3": GPT3}


@dataclass(frozen=True)
class Part:
    """A corpus in a mixture."""

    corpus: Corpus
    weight: float
    """Weight relative to the other corpora's weights."""
    share: float
    """Share of the training samples: the weight divided by the sum of all weights."""
    epochs: float
    """Number of passes over the corpus in the run."""


def read_corpus(text: str) -> Corpus:
    """The corpus of NAME=TOKENS or NAME=PREFIX.json.

    With TOKENS its path is data/NAME. `megagpt data preprocess` writes PREFIX.json. Raises ConfigError for another
    form, DataError for a file without the number of tokens.
    """
    name, equals, value = text.partition("=")
    value = at_home(value)
    if not equals or not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"{text}: give a corpus as NAME=TOKENS or NAME=PREFIX.json, such as web=410e9")
    if not value.endswith(".json"):
        try:
            return Corpus(name, f"data/{name}", _positive(float(value)))
        except ValueError:
            raise ConfigError(
                f"{text}: {value} is neither a number of tokens, such as 410e9, nor a PREFIX.json"
            ) from None
    try:
        about = json.loads(read_input(value))
        return Corpus(name, value.removesuffix(".json"), _positive(about["tokens"]), about.get("tokenizer_sha256"))
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DataError(f"{value} is not the .json of a corpus of `megagpt data preprocess`: {reason}") from None


def read_weight(text: str) -> tuple[str, float]:
    """The name and the number of NAME=WEIGHT. Raises ConfigError for anything else."""
    name, _, value = text.partition("=")
    try:
        return name, _positive(float(value))
    except ValueError:
        raise ConfigError(f"--weights {text}: give NAME=WEIGHT with a weight above 0, such as web=0.6") from None


def published(recipe: str) -> list[Corpus]:
    """The corpora of a recipe, with the published sizes."""
    return [Corpus(name, f"data/{name}", row.tokens) for name, row in RECIPES[recipe].items()]


def recipe_weights(recipe: str, corpora: Sequence[Corpus]) -> dict[str, float]:
    """The published weights of `corpora`, a part of the recipe's corpora. Raises ConfigError for other names."""
    rows = RECIPES[recipe]
    for corpus in corpora:
        if corpus.name not in rows:
            close = nearest(corpus.name, rows)
            hint = f"did you mean {close}?" if close else f"they are {', '.join(rows)}"
            raise ConfigError(f"{corpus.name} is not a corpus of the recipe {recipe}; {hint}")
    return {corpus.name: rows[corpus.name].weight for corpus in corpora}


def size_weights(corpora: Sequence[Corpus], exponent: float) -> dict[str, float]:
    """Weights that grow with the sizes: tokens^exponent, made to sum to 1.

    Exponent 1 is proportional and gives every corpus the same number of epochs; 0 gives equal weights. Multilingual
    models take 0.3 (XLM-R, arXiv 1911.02116; mT5, arXiv 2010.11934); a temperature T is the exponent 1 / T.
    """
    largest = max(corpus.tokens for corpus in corpora)
    sizes = {corpus.name: (corpus.tokens / largest) ** exponent for corpus in corpora}
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def mix(corpora: Sequence[Corpus], weights: Mapping[str, float], train_tokens: float) -> list[Part]:
    """The mixture for a run of `train_tokens`.

    Raises ConfigError when names occur twice, or do not match the names of the weights; DataError when the corpora have
    different tokenizers.
    """
    names = [corpus.name for corpus in corpora]
    if len(set(names)) < len(names):
        raise ConfigError(f"the corpora {', '.join(names)}: each needs a different name")
    if set(names) != set(weights):
        raise ConfigError(f"weights are given for {', '.join(weights)}, but the corpora are {', '.join(names)}")
    if train_tokens <= 0:
        raise ConfigError(f"--train-tokens {train_tokens:g}: it must be above 0")
    known = {corpus.tokenizer: corpus.name for corpus in corpora if corpus.tokenizer}
    if len(known) > 1:
        raise DataError(f"{' and '.join(known.values())} were tokenized with different tokenizers")
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    return [
        Part(one, weights[one.name], shares[one.name], shares[one.name] * train_tokens / one.tokens) for one in corpora
    ]


def repeated(parts: Sequence[Part]) -> list[str]:
    """A warning for each corpus with more than LARGEST_EPOCHS epochs."""
    return [
        f"{part.corpus.name}: {part.epochs:.1f} epochs; beyond {LARGEST_EPOCHS} repeated tokens are worth clearly less "
        "than new ones (arXiv 2305.16264): add data or lower its weight"
        for part in parts
        if part.epochs > LARGEST_EPOCHS
    ]


def contradictions(recipe: str = "gpt3") -> list[str]:
    """Contradictions in the published table, each with a note whether its rounding can explain them."""
    rows = RECIPES[recipe]
    total = sum(row.weight for row in rows.values())
    found = [f"The weights as printed sum to {total:.0%}; a run divides them by their sum."]
    for name, row in rows.items():
        epochs = row.weight * GPT3_TOKENS / row.tokens
        least = (row.weight - 0.005) * GPT3_TOKENS / (row.tokens + 0.5e9)
        most = (row.weight + 0.005) * GPT3_TOKENS / (row.tokens - 0.5e9)
        if abs(epochs / row.epochs - 1) > 0.1:
            explained = "explains" if least <= row.epochs <= most else "does not explain"
            found.append(
                f"{name}: {row.weight:.0%} of {GPT3_TOKENS / 1e9:.0f} B tokens are {epochs:.1f} epochs of "
                f"{row.tokens / 1e9:.0f} B, printed are {row.epochs}; rounding, from {least:.1f} to {most:.1f}, "
                f"{explained} it."
            )
    return found


def override(parts: Sequence[Part]) -> str:
    """The mixture as a command-line setting of a run."""
    entries = []
    for part in parts:
        path = part.corpus.path
        path = path if re.fullmatch(r"[\w./-]+", path) else json.dumps(path, ensure_ascii=False)
        entries.append(f"{{path:{path},weight:{part.weight:.6g}}}")
    return f"data.corpora=[{','.join(entries)}]"


def to_yaml(parts: Sequence[Part], train_tokens: float, notes: Sequence[str] = ()) -> str:
    """The mixture as an option of the config group `data`, with explanations as comments."""
    total = sum(part.corpus.tokens for part in parts)
    lines = [f"# {len(parts)} corpora of {total:.4g} tokens in all, for a run of {train_tokens:.4g} tokens."]
    lines += [f"# {note}" for note in notes]
    lines += [
        "# As configs/data/NAME.yaml of a checkout it is data=NAME; anywhere it is",
        f"#   {shlex.quote(override(parts))}",
    ]
    lines += ["corpora:"]
    for part in parts:
        meaning = f"{part.corpus.tokens:.4g} tokens, {part.share:.1%} of the samples, {part.epochs:.2f} epochs"
        lines.append(
            f"  - {{path: {json.dumps(part.corpus.path, ensure_ascii=False)}, weight: {part.weight:.6g}}}  # {meaning}"
        )
    return "\n".join(lines) + "\n"


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{value} is not above 0")
    return value
