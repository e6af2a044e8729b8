"""The embedding stage's part of the configuration."""

import math
from dataclasses import dataclass

from megagpt.config.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

LOG_SCALE_ORIGIN, LOG_SCALE_SPEED = -math.log(0.07), 30.0
"""A learned temperature is a parameter p, by which log(1 / temperature) = origin + speed * p.

Adam moves a parameter by about the learning rate a step, whatever its gradient. Rates that suit weights would leave a
temperature where it began, so it moves `speed` times as fast. Near the origin p is near 0, where bf16 is fine.
"""


def scale_of(temperature: float) -> float:
    """The parameter p of a temperature."""
    return (-math.log(temperature) - LOG_SCALE_ORIGIN) / LOG_SCALE_SPEED


def temperature_of(scale: float) -> float:
    """The temperature of a parameter p."""
    return math.exp(-LOG_SCALE_ORIGIN - LOG_SCALE_SPEED * scale)


@dataclass(frozen=True)
class EmbedConfig:
    """Stage embed: contrastive training on pairs of texts (arXiv 2201.10005).

    A text's vector is the last layer's state at an end-of-text token behind it, scaled to length 1. Whoever uses the
    model reads the delimiters, the length and the dimensions here, in the configuration that a checkpoint holds.
    """

    query_prefix: str = "["
    """Text before a query. It is encoded apart from the query, as the other delimiters are."""
    query_suffix: str = "]"
    """Text behind a query, before the end-of-text token."""
    document_prefix: str = "{"
    """Text before a document. Delimiters that differ by side made the paper's training more stable."""
    document_suffix: str = "}"
    """Text behind a document, before the end-of-text token."""
    max_tokens: PositiveInt | None = None
    """Longest text in tokens, delimiters and end-of-text included; longer texts lose their end. null:
    model.sequence_length."""
    temperature: PositiveFloat = 0.07
    """Temperature of the softmax at the start; the paper gives none, this is CLIP's (arXiv 2103.00020). A run that
    starts from an embedding model goes on with that one's, where both learn it."""
    learn_temperature: bool = True
    """Whether the temperature is learned, as a logarithm without weight decay; false keeps it."""
    min_temperature: PositiveFloat = 0.01
    """The learned temperature stays at or above this (CLIP's 100 times)."""
    hard_negatives: NonNegativeInt = 0
    """Negatives of each pair's own that all queries of the batch are compared with; further ones are left out."""
    false_negative_margin: NonNegativeFloat | None = None
    """A document whose cosine to a query is above that of the query's own by more than this is no negative of it; and
    likewise a query that is nearer to a document than the document's own. null: only texts that are identical or nearly
    so are left out."""
    dimensions: tuple[PositiveInt, ...] = ()
    """Lengths of beginnings of the vector that are to be good vectors too (Matryoshka, arXiv 2205.13147); the loss is
    the mean over them and the whole vector. []: the whole vector alone."""
    scored_pairs: str | None = None
    """File of pairs of sentences with scores (.jsonl, .csv, .tsv). Evaluations log validation_spearman, the rank
    correlation of the cosines with them. The paper found that it may fall while search still improves."""
    candidates: PositiveInt = 1000
    """Held-out documents among which evaluations look for each query's own (validation_mrr)."""
