"""Sample texts from inputs of any size, to train a tokenizer on."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from megagpt.data.preprocess import MAX_RECORD_MB
from megagpt.data.readers import FOLDER_PATTERNS, Position, Rejection, chunks, documents, find_sources
from megagpt.data.unread import log_unread
from megagpt.errors import DataError

log = logging.getLogger(__name__)


def sample_texts(
    inputs: Sequence[str | Path],
    *,
    key: str = "text",
    patterns: Sequence[str] = FOLDER_PATTERNS,
    max_mb: float | None = None,
    max_rejected: int = 0,
    max_record_mb: float = MAX_RECORD_MB,
) -> Iterator[str]:
    """About `max_mb` million bytes of texts of `inputs` (see readers.find_sources).

    The sample is spread evenly over the inputs and depends only on them. Logs the amount of text at the end. Raises
    DataError when there are more than `max_rejected` malformed records.
    """
    sources = find_sources(inputs, patterns)
    total, limit = sum(source.bytes for source in sources), int(max_record_mb * 1e6)
    stored = taken = rejected = 0
    unread: Counter[str] = Counter()
    sampled = False
    for chunk in chunks(sources, key, limit, Position()):
        stored += chunk.stored_bytes
        allowed = float("inf") if max_mb is None else max_mb * 1e6 * stored / total
        for text in (text for item in chunk.items for text in documents(item, key, limit, unread)):
            if taken >= allowed:
                sampled = True
                break
            if isinstance(text, Rejection):
                rejected += 1
                log.warning("rejected %s", text)
                if rejected > max_rejected:
                    raise DataError(f"{rejected} malformed records, and --max-rejected is {max_rejected}: {text}")
                continue
            taken += len(text.encode())
            yield text
    log_unread(f"the inputs, of which only --key {key} is read", unread)
    log.info("took %.1f MB of text%s", taken / 1e6, ", spread evenly over the inputs" if sampled else ", all there is")
