"""The embedding stage's part of the configuration."""

import math
from dataclasses import dataclass

from megagpt.config.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

LOG_SCALE_ORIGIN, LOG_SCALE_SPEED = -math.log(0.07), 30.0
"""A learned temperature is stored as a parameter p with log(1 / temperature) = origin + speed * p.

Adam moves a parameter by about the learning rate in each step, whatever its gradient. With learning rates for weights
the temperature would hardly change, so it moves `speed` times as fast. At the origin p is 0, where bf16 is precise.
"""


def scale_of(temperature: float) -> float:
    """The parameter p that stands for a temperature."""
    return (-math.log(temperature) - LOG_SCALE_ORIGIN) / LOG_SCALE_SPEED


def temperature_of(scale: float) -> float:
    """The temperature that a parameter p stands for."""
    return math.exp(-LOG_SCALE_ORIGIN - LOG_SCALE_SPEED * scale)


@dataclass(frozen=True)
class EmbedConfig:
    """Stage embed: contrastive training on pairs of texts (arXiv 2201.10005).

    A text's vector is the last layer's state at the end-of-text token after it, scaled to length 1. Programs that use
    the model read the delimiters, the length and the dimensions from this section of a checkpoint's configuration.
    """

    query_prefix: str = "["
    """Text before a query. All delimiters are tokenized separately from the text."""
    query_suffix: str = "]"
    """Text after a query, before the end-of-text token."""
    document_prefix: str = "{"
    """Text before a document. The paper found training more stable with different delimiters on the two sides."""
    document_suffix: str = "}"
    """Text after a document, before the end-of-text token."""
    max_tokens: PositiveInt | None = None
    """Longest text in tokens, delimiters and end-of-text included; longer texts are cut at the end. null:
    model.sequence_length."""
    temperature: PositiveFloat = 0.07
    """Temperature of the softmax at the start. The paper gives none; this is CLIP's (arXiv 2103.00020). A run that
    starts from an embedding model keeps that model's temperature if both learn it."""
    learn_temperature: bool = True
    """Whether the temperature is learned, as a logarithm without weight decay; false: it stays constant."""
    min_temperature: PositiveFloat = 0.01
    """Lower limit of the learned temperature; CLIP limits the scale, its inverse, to 100."""
    hard_negatives: NonNegativeInt = 0
    """Number of each pair's own negatives that are used; all queries of the batch are compared with them. Further ones
    are left out."""
    false_negative_margin: NonNegativeFloat | None = None
    """A document is no negative of a query if its cosine to the query exceeds that of the query's own document by more
    than this; the same holds for a query and a document's own query. null: only texts that are identical or nearly
    identical are no negatives."""
    dimensions: tuple[PositiveInt, ...] = ()
    """Numbers of leading dimensions that are also trained as vectors (Matryoshka, arXiv 2205.13147); the loss is the
    mean over them and the whole vector. []: only the whole vector is trained."""
    scored_pairs: str | None = None
    """File of sentence pairs with scores (.jsonl, .csv, .tsv). Evaluations log validation_spearman, the rank
    correlation between cosines and scores. The paper found that it may fall while search still improves."""
    candidates: PositiveInt = 1000
    """Number of held-out documents among which evaluations search for each query's own (validation_mrr)."""
