"""Options of a corpus of source code."""

from dataclasses import dataclass, field

from megagpt.data.corpus.code.rules import NGRAM, Limits
from megagpt.data.corpus.tally import SAMPLES

SHARD_MB = 16
"""Source code per shard, in millions of bytes."""


@dataclass(frozen=True)
class Options:
    """Options of the corpus. The result depends only on these and on the input."""

    languages: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    licences: tuple[str, ...] | None = None
    """Allowed SPDX identifiers, or `permissive`; None keeps files with any licence or without one."""
    decontaminate: tuple[str, ...] = ()
    """jsonl(.gz) files of evaluation data."""
    ngram: int = NGRAM
    """Length of the n-grams, in words: a file may not share one with evaluation data."""
    minhash_words: int = 5
    """Words per shingle of MinHash; this and the next two are the defaults of datatrove and FineWeb."""
    minhash_buckets: int = 14
    """Number of buckets; two files are near-duplicates if one bucket agrees."""
    minhash_hashes: int = 8
    """Hashes per bucket. About half of the pairs with a similarity of (1/buckets)^(1/hashes) are found."""
    compression: str = "zst"
    """Compression of the shards: zst, gz or none."""
    samples: int = SAMPLES
    """Number of files that the report shows for each rule."""
    shard_mb: float = SHARD_MB
    """Source code per shard, in millions of bytes."""
