"""Libraries that tokenize large corpora: GigaToken where it gives the same ids as `tokenizers`, else `tokenizers`.

GigaToken (https://github.com/marcelroed/gigatoken) is about a hundred times as fast: it has compiled code for a few
known splitting patterns, and caches the ids of every word. It is used when three conditions hold: it follows the same
rules as this tokenizer (`obstacle` finds none that differ), it is installed, and both give the same ids on a test text.
"""

import json
import logging
import re
import resource
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError

log = logging.getLogger(__name__)

CACHE_BYTES = 32 << 20
"""Approximate limit of the memory of GigaToken's caches, in bytes."""

CHECKED_BYTES = 4 << 20
"""Bytes of text between two checks of that memory. If every word is new, the memory grows by 20 times as much."""

_ALPHABET = frozenset(ByteLevel.alphabet())
"""The 256 characters with which byte-level BPE spells the 256 bytes."""

_FLAGS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
"""Options of the BPE model that change its ids; GPT-2 uses none of them."""

_SAMPLE = (
    "It's 12 o'clock; we'll see THEM'RE 'd  3.14159e-10, 1,000,000!?\r\n\t\tdef f(x):\n        return x  +  1\n\n \n"
    "naïve façade Straße Ελλάδα Москва שלום مرحبا नमस्ते สวัสดี 你好，世界。こんにちは 한국어 ①²½ e\u0301 "
    "👩\u200d👩\u200d👧 \u00a0\u2003\u3000\u0085\u2028x \x00\x1c\x7f\ufeff\ufffd\U0010ffff <|endoftext|><|user|> ====="
)
"""Text with every kind of word boundary in GPT-2's pattern."""


EngineName = Literal["gigatoken", "tokenizers"]


class Engine(NamedTuple):
    """A library that tokenizes."""

    name: EngineName
    version: str


class Encoder(Protocol):
    """A function from texts to ids."""

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, as arrays of integers. The name of a special token in a text is plain text."""


def choose_engine(tokenizer: Tokenizer, wanted: EngineName | None = None) -> Engine:
    """GigaToken if it gives this tokenizer's ids, else `tokenizers`. Logs the choice and its reason.

    wanted: the engine to use; None chooses. Raises ConfigError if GigaToken is wanted but would give other ids.
    """
    usual = Engine("tokenizers", version("tokenizers"))
    if wanted == "tokenizers":
        log.info("tokenizers %s tokenizes, as asked for", usual.version)
        return usual
    unknown = obstacle(tokenizer)
    why = unknown or _fault(tokenizer)
    if why is None:
        fast = Engine("gigatoken", version("gigatoken"))
        log.info("GigaToken %s tokenizes; on a test text it gives the ids of %s %s", fast.version, *usual)
        return fast
    if wanted == "gigatoken":
        raise ConfigError(f"GigaToken cannot serve this tokenizer: {why}")
    level = logging.INFO if unknown else logging.WARNING
    log.log(level, "tokenizers %s tokenizes, and not GigaToken, which is faster: %s", usual.version, why)
    return usual


def make_encoder(tokenizer: Tokenizer, engine: Engine) -> Encoder:
    """The encoder of `engine`, which `choose_engine` returned."""
    if engine.name == "gigatoken":
        return GigaToken(tokenizer)
    return partial(_encode, tokenizer)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(ids, np.uint32) for ids in tokenizer.encode_batch(texts)]


def obstacle(tokenizer: Tokenizer) -> str | None:
    """The reason why GigaToken might give other ids than `tokenizer`; None if both follow the same rules."""
    spec = json.loads(tokenizer.to_json())
    model, splitter = spec["model"], spec["pre_tokenizer"] or {}
    if model["type"] != "BPE":
        return f"its model is {model['type']}, not BPE"
    if spec["normalizer"]:
        return f"it has a normalizer ({spec['normalizer']['type']})"
    if splitter.get("type") != "ByteLevel" or not splitter["use_regex"]:
        return "its splitting pattern is not GPT-2's"
    if splitter["add_prefix_space"]:
        return "it puts a space before each text (add_prefix_space)"
    if flags := [name for name in _FLAGS if model.get(name)]:
        return f"its model has {' and '.join(flags)}"
    if ordinary := [token["content"] for token in spec["added_tokens"] if not token["special"]]:
        return f"its added token {ordinary[0]!r} is not a special one"
    products = ["".join(pair) for pair in model["merges"]]
    if len(set(products)) < len(products):  # GigaToken may rank merges by the token that they make
        return "two of its merges make the same token"
    if not _ALPHABET.issubset(model["vocab"]) or not _ALPHABET.issuperset("".join(products)):
        return "its tokens are not spelled in bytes"
    return None


def _fault(tokenizer: Tokenizer) -> str | None:
    """The fault of the installed GigaToken; None if it gives the ids of `tokenizer` on test texts."""
    try:
        return first_difference(tokenizer, GigaToken(tokenizer))
    except ImportError:
        return "it is not installed (pip install gigatoken)"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in its Rust code is not a subclass of Exception
        return f"it fails on a test text ({type(error).__name__}: {error})"


def first_difference(tokenizer: Tokenizer, encode: Encoder) -> str | None:
    """A message with the first test text for which `encode` gives other ids than `tokenizer`; None if there is none.

    The test texts are a fixed text, its words, the special tokens, and all tokens of the vocabulary in a row.
    """
    words = [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)]
    texts = [_SAMPLE, *re.split(r"(?<=\s)", _SAMPLE), "", *tokenizer.special_ids, "".join(words), " ".join(words[::-1])]
    for text, expected, ids in zip(texts, tokenizer.encode_batch(texts), encode(texts), strict=True):
        if ids.tolist() != expected:
            return f"it gives other ids for the test text {text[:40]!r}"
    return None


def _bare_spec(tokenizer: Tokenizer) -> str:
    """A tokenizer.json without added tokens: GigaToken would encode the name of a special token in a text as one."""
    model = json.loads(tokenizer.to_json())["model"]
    known = _ALPHABET.union(map("".join, model["merges"]))
    bare: dict[str, Any] = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for token, index in model["vocab"].items() if token in known},
            "merges": model["merges"],
        },
    }
    return json.dumps(bare, ensure_ascii=False)


class GigaToken:
    """GigaToken's encoder. It is created anew when its caches have become large, because they only grow."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from gigatoken.gigatoken_rs import load_hf_json

        self._load = partial(load_hf_json, _bare_spec(tokenizer))
        self._renew()

    def _renew(self) -> None:
        self._library: Any = None  # frees the old caches before the new ones are created
        self._library = self._load()
        self._resident, self._unchecked = _resident_bytes(), 0

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, as uint32 arrays. The name of a special token in a text is plain text."""
        encoded = []
        for text in texts:
            data = text.encode()
            encoded.append(self._library.encode(data))
            self._unchecked += len(data)
            if self._unchecked > CHECKED_BYTES:
                self._unchecked = 0
                if self._is_large():
                    self._renew()
        return encoded

    def _is_large(self) -> bool:
        resident = _resident_bytes()
        return resident is None or self._resident is None or resident - self._resident > CACHE_BYTES


def _resident_bytes() -> int | None:
    """Resident memory of this process; None where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
