"""Options of a corpus of text."""

from dataclasses import dataclass

from megagpt.data.corpus.tally import SAMPLES
from megagpt.data.corpus.text.inputs.extract import Library
from megagpt.data.corpus.text.inputs.links import MIN_SCORE
from megagpt.data.corpus.text.inputs.units import Kind
from megagpt.data.corpus.text.recipe import Recipe
from megagpt.data.readers import MAX_RECORD_BYTES

SHARD_MB = 128
"""Files, as they are stored, that make a shard, in millions of bytes."""


@dataclass(frozen=True)
class Options:
    """Options of the corpus; the result depends on nothing else."""

    kind: Kind
    recipe: Recipe
    key: str = "text"
    """Of the text in lines of JSON, and its column in parquet files."""
    links: tuple[str, ...] = ()
    """Files of links with scores: only pages with a link of a sufficient score are kept."""
    min_link_score: float = MIN_SCORE
    against: tuple[str, ...] = ()
    """Folders of corpora whose documents are removed from this one; they stay as they are."""
    decontaminate: tuple[str, ...] = ()
    """Files of evaluation data."""
    extractor: Library = "trafilatura"
    """Of text from HTML."""
    max_record_mb: float = MAX_RECORD_BYTES / 1e6
    """Longest record that is read, in millions of bytes."""
    compression: str = "zst"
    """Of the shards: zst, gz or none."""
    samples: int = SAMPLES
    """Documents that the report shows for each rule."""
    shard_mb: float = SHARD_MB
