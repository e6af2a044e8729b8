"""Options of a corpus of source code."""

from dataclasses import dataclass, field

from megagpt.data.corpus.code.rules import NGRAM, Limits
from megagpt.data.corpus.tally import SAMPLES

SHARD_MB = 16
"""Source code that makes a shard, in millions of bytes."""


@dataclass(frozen=True)
class Options:
    """Options of the corpus; the result depends on nothing else."""

    languages: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    licences: tuple[str, ...] | None = None
    """Allowed SPDX identifiers, or `permissive`; None keeps files of any licence and of none."""
    decontaminate: tuple[str, ...] = ()
    """jsonl(.gz) files of evaluation data."""
    ngram: int = NGRAM
    """Words in a row that a file may not share with evaluation data."""
    minhash_words: int = 5
    """Words in the runs that near-duplicates are compared by; like the next two datatrove's, and FineWeb's, default."""
    minhash_buckets: int = 14
    minhash_hashes: int = 8
    """Hashes that must agree in one bucket: half of the pairs with a similarity of (1/buckets)^(1/hashes) are found."""
    compression: str = "zst"
    """Of the shards: zst, gz or none."""
    samples: int = SAMPLES
    """Files that the report shows for each rule."""
    shard_mb: float = SHARD_MB
