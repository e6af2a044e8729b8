"""Select pages by lists of links with scores, such as votes, like WebText.

WebText (Radford et al. 2019, section 2.1) takes the targets of links in posts with at least 3 karma.
"""

import csv
import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from megagpt.data.corpus.text.page import Broken, Page
from megagpt.data.readers import Position, Rejection, Source, chunks, raw_records
from megagpt.errors import ConfigError, DataError

MIN_SCORE = 3.0
RULE = "link score"
"""Rule that drops pages without a link of a sufficient score."""

_TRACKING = re.compile(r"(utm_\w+|fbclid|gclid|mc_cid|mc_eid)=[^&]*&?", re.I)
_MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Links:
    """The scores of URLs, with 12 bytes per URL."""

    hashes: np.ndarray
    """uint64 [links], ascending: hashes of normalised URLs."""
    scores: np.ndarray
    """float32 [links]: the highest score of each URL."""
    min_score: float = MIN_SCORE
    """Smallest sufficient score."""

    def reject(self, page: Page) -> Broken | None:
        """None if a link with a sufficient score leads to `page`; else the reason."""
        if page.url is None:
            return Broken(page.source, page.bytes, RULE, "the record states no URL")
        key = np.uint64(_hash(page.url))
        place = int(np.searchsorted(self.hashes, key))
        if place == len(self.hashes) or self.hashes[place] != key:
            return Broken(page.source, page.bytes, RULE, f"no link leads to {page.url}")
        score = float(self.scores[place])
        if score >= self.min_score:
            return None
        return Broken(page.source, page.bytes, RULE, f"{score:g} is less than {self.min_score:g}: {page.url}")


def load_links(paths: Sequence[str | Path], min_score: float = MIN_SCORE) -> Links:
    """Read lists of links: lines `{"url": ..., "score": ...}` of JSON, or `url<TAB>score` or `url,score`.

    Files end in .jsonl, .tsv or .csv, and .gz or .zst may follow; the first line of a table may be its header. Raises
    DataError with file and line of the first malformed line.
    """
    hashes, scores = array("Q"), array("f")
    for path in map(Path, paths):
        for url, score in _links_in(path):
            hashes.append(_hash(url))
            scores.append(score)
    keys, values = np.frombuffer(hashes, np.uint64), np.frombuffer(scores, np.float32)
    order = np.lexsort((-values, keys))  # of links to the same page, the one with the highest score comes first
    keys, first = np.unique(keys[order], return_index=True)
    return Links(keys, values[order][first], min_score)


def normalise_url(url: str) -> str:
    """`url` in a form that is equal for common variants of the same address.

    The host is in lower case. Scheme, "www.", user, default port, fragment, tracking parameters and slashes at the end
    are removed.
    """
    try:
        parts = urlsplit(url.strip() if "//" in url else f"//{url.strip()}")
        host, port = (parts.hostname or "").removeprefix("www.").rstrip("."), parts.port
    except ValueError:  # an invalid port or IPv6 address
        return url.strip()
    query = _TRACKING.sub("", parts.query).rstrip("&")
    address = host + (f":{port}" if port not in (None, 80, 443) else "") + parts.path.rstrip("/")
    return address + (f"?{query}" if query else "")


def _hash(url: str) -> int:
    try:
        import xxhash
    except ImportError:
        raise ConfigError('lists of links need xxhash: pip install "megagpt[corpora]"') from None
    return xxhash.xxh3_64_intdigest(normalise_url(url).encode(errors="replace"))


def _links_in(path: Path) -> Iterator[tuple[str, float]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            link = _link_of_table(line, name) if name.endswith((".tsv", ".csv")) else _link_of_json(line)
        except (ValueError, KeyError, TypeError, IndexError, csv.Error, RecursionError) as error:
            if number == 1 and name.endswith((".tsv", ".csv")) and "://" not in line:
                continue  # the header
            raise DataError(f"{path}:{number}: not a URL and its score ({error}): {line[:200]!r}") from None
        yield link


def _lines(path: Path) -> Iterator[str]:
    for chunk in chunks([Source(str(path), path.stat().st_size, "lines")], "", _MAX_LINE, Position()):
        for item in chunk.items:
            if isinstance(item, Rejection):
                raise DataError(str(item))
            for line in raw_records(item):
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}: a line is not UTF-8 ({error})") from None


def _link_of_json(line: str) -> tuple[str, float]:
    record = json.loads(line)
    return str(record["url"]), float(record["score"])


def _link_of_table(line: str, name: str) -> tuple[str, float]:
    row = next(csv.reader(io.StringIO(line), delimiter="\t" if name.endswith(".tsv") else ","))
    return row[0], float(row[1])
