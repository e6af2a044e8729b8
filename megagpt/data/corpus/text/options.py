"""Options of a corpus of text."""

from dataclasses import dataclass

from megagpt.data.corpus.tally import SAMPLES
from megagpt.data.corpus.text.inputs.extract import Library
from megagpt.data.corpus.text.inputs.links import MIN_SCORE
from megagpt.data.corpus.text.inputs.units import Kind
from megagpt.data.corpus.text.recipe import Recipe
from megagpt.data.readers import MAX_RECORD_BYTES

SHARD_MB = 128
"""Input files per shard, in millions of bytes as stored."""


@dataclass(frozen=True)
class Options:
    """Options of the corpus. The result depends only on these and on the input."""

    kind: Kind
    recipe: Recipe
    key: str = "text"
    """Key of the text in lines of JSON, or its column in parquet files."""
    links: tuple[str, ...] = ()
    """Files of links with scores: only pages with a link of a sufficient score are kept."""
    min_link_score: float = MIN_SCORE
    """Smallest sufficient score of a link."""
    against: tuple[str, ...] = ()
    """Folders of corpora whose documents are removed from this one. These corpora stay unchanged."""
    decontaminate: tuple[str, ...] = ()
    """Files of evaluation data."""
    extractor: Library = "trafilatura"
    """Library that extracts text from HTML."""
    max_record_mb: float = MAX_RECORD_BYTES / 1e6
    """Largest size of a record, in millions of bytes."""
    compression: str = "zst"
    """Compression of the shards: zst, gz or none."""
    samples: int = SAMPLES
    """Number of documents that the report shows for each rule."""
    shard_mb: float = SHARD_MB
    """Input files per shard, in millions of bytes as stored."""
