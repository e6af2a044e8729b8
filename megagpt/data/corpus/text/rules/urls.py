"""Refuse addresses by domain, by whole address, and by words in them, like RefinedWeb (appendix G.1)."""

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from megagpt.data.corpus.text.analysis import hash_words
from megagpt.data.corpus.text.limits import Urls
from megagpt.data.corpus.text.rules.verdict import Drop
from megagpt.data.files import read_text
from megagpt.errors import ConfigError, DataError

_SMALL = {
    "strict_words": ("porn", "xhamster", "xnxx", "xvideos"),
    "hard_words": ("hentai", "milf", "xxx"),
    "soft_words": (
        "adult",
        "bet",
        "betting",
        "casino",
        "dating",
        "escort",
        "gambling",
        "nude",
        "poker",
        "sex",
        "viagra",
    ),
}
_ASSETS = {"strict_words": "banned_subwords", "hard_words": "banned_words", "soft_words": "soft_banned_words"}
"""Files of datatrove's package."""
_ARCHIVE = "url_filterblacklistsv0_3_0.tar.gz"

_BATCH = 100_000
_NO_WORD = re.compile(r"[^a-z0-9]+")
_HOST = re.compile(r"[\w.:-]+")


class UrlRules:
    """The rules of one recipe. Lists are held as hashes, with 8 bytes per entry."""

    def __init__(self, limits: Urls) -> None:
        """Read the lists. Raises ConfigError with the file that cannot be read."""
        self._domains = _hashes(map(_in_ascii, _entries(limits, "domains")))
        self._urls = _hashes(map(_without_scheme, _entries(limits, "urls")))
        self._strict = sorted({_NO_WORD.sub("", word.lower()) for word in _entries(limits, "strict_words")} - {""})
        self._hard = {_NO_WORD.sub("", word.lower()) for word in _entries(limits, "hard_words")}
        self._soft = {_NO_WORD.sub("", word.lower()) for word in _entries(limits, "soft_words")}
        self._min_soft = limits.min_soft_words

    def __call__(self, url: str) -> Drop | None:
        """The reason to drop a page at this address, or None."""
        host = host_of(url)
        if not host:
            return Drop("unreadable", url[:200])
        domains = list(domains_of(host))
        if found := _first(domains, self._domains):
            return Drop("domain", found)
        if _first([_without_scheme(url)], self._urls):
            return Drop("address", url[:200])
        lower = url.lower()
        words = set(_NO_WORD.split(lower))
        if found := min(words & self._hard, default=None):
            return Drop("hard word", found)
        if len(soft := words & self._soft) >= self._min_soft:
            return Drop("soft words", ", ".join(sorted(soft)))
        joined = _NO_WORD.sub("", lower)
        found = next((word for word in self._strict if word in joined), None)
        return Drop("strict word", found) if found else None


def host_of(url: str) -> str | None:
    """The host in lower case, with international names in ASCII; None for an address without a host."""
    try:
        host = (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".")
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:  # includes UnicodeError
        return None
    return host if _HOST.fullmatch(host) else None


def domains_of(host: str) -> Iterator[str]:
    """The registered domain of a host, and all its subdomains up to the host: example.co.uk, a.example.co.uk."""
    labels = host.split(".")
    if ":" in host or labels[-1].isdigit():  # an IP address
        yield host
        return
    registered = _get_domain()(f"http://{host}", fail_silently=True)
    first = len(labels) - (registered.count(".") + 1 if registered else min(2, len(labels)))
    yield from (".".join(labels[place:]) for place in range(first, -1, -1))


def _in_ascii(domain: str) -> str:
    return domain if domain.isascii() else host_of(domain) or domain


def _without_scheme(url: str) -> str:
    return url.strip().split("://", 1)[-1].rstrip("/")


def _entries(limits: Urls, name: str) -> Iterator[str]:
    """The entries of one list, from the recipe's file and from the built-in lists."""
    if path := getattr(limits, name):
        try:
            yield from _lines(read_text(path).splitlines())
        except DataError as error:
            raise ConfigError(f"urls.{name}: {path} cannot be read: {error}") from error
    if limits.lists == "small":
        yield from _SMALL.get(name, ())
    elif limits.lists == "datatrove":
        yield from _lines(_datatrove(name))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _datatrove(name: str) -> Iterator[str]:
    """The lines of a list in datatrove's package."""
    try:
        from datatrove.utils._import_utils import ASSETS_PATH
    except ImportError as error:
        raise ConfigError('urls.lists=datatrove needs datatrove: pip install "megagpt[corpora]"') from error
    if name in _ASSETS:
        yield from (Path(ASSETS_PATH) / f"{_ASSETS[name]}.txt").read_text(encoding="utf-8").splitlines()
        return
    with tarfile.open(Path(ASSETS_PATH) / _ARCHIVE) as archive:
        for line in archive.extractfile(name):
            yield line.decode("utf-8", "replace")


def _hashes(entries: Iterable[str]) -> np.ndarray:
    """uint64 [entries]: sorted hashes of entries in lower case. The entries are never all in memory."""
    lower, parts = map(str.lower, entries), []
    while batch := list(islice(lower, _BATCH)):
        parts.append(hash_words(batch))
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))


def _first(names: list[str], hashes: np.ndarray) -> str | None:
    """The first of `names` whose hash is in the sorted `hashes`, or None."""
    if not len(hashes):
        return None
    own = hash_words([name.lower() for name in names])
    found = np.flatnonzero(hashes[np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)] == own)
    return names[found[0]] if len(found) else None


@cache
def _get_domain() -> Callable[..., str | None]:
    """tld's function for registered domains; its package has the list of public suffixes."""
    try:
        from tld import get_fld
    except ImportError as error:
        raise ConfigError('rules about addresses need tld: pip install "megagpt[corpora]"') from error
    return get_fld


@lru_cache(maxsize=2)
def load_url_rules(limits: Urls) -> UrlRules:
    """The rules of a recipe. Lists are read once per process. Raises ConfigError as `UrlRules`."""
    return UrlRules(limits)
