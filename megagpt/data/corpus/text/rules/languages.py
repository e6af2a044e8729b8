"""Identify the language of a text, with a model from a package or a local file. Nothing is downloaded."""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from megagpt.data.corpus.text.limits import Languages
from megagpt.data.corpus.text.rules.verdict import Drop
from megagpt.errors import ConfigError

# CLD2 refuses these: control characters, halves of surrogate pairs, code points that are not characters.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane * 0x10000 + low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)
_OLD_CODES = {"iw": "he", "jw": "jv", "in": "id", "mo": "ro", "sh": "sr"}
_UNKNOWN = "un"


class Language(NamedTuple):
    """The main language of a text."""

    code: str
    """ISO 639-1 code, else 639-3; `un` if unknown."""
    score: float
    """0 to 1. CLD2: the share of the text in this language. fastText: its probability."""


Identifier = Callable[[str], Language]
"""A function that identifies the language of a text."""


@lru_cache(maxsize=2)
def load_identifier(model: str) -> Identifier:
    """CLD2 for `cld2`, else fastText with the model in that file.

    Raises ConfigError with the missing package or file.
    """
    return _cld2() if model == "cld2" else _fasttext(Path(model))


def wrong_language(language: Language, limits: Languages) -> Drop | None:
    """A drop for another language, or for a score below the limit."""
    if language.code not in limits.keep:
        return Drop("other language", language.code)
    if language.score < limits.min_score:
        return Drop("unsure language", f"{language.code} {language.score:.2f}")
    return None


def _cld2() -> Identifier:
    try:
        import pycld2
    except ImportError as error:
        raise ConfigError('telling languages needs pycld2: pip install "megagpt[corpora]"') from error

    def identify(text: str) -> Language:
        try:
            _, _, found = pycld2.detect(text, isPlainText=True)
        except (pycld2.error, UnicodeEncodeError):
            _, _, found = pycld2.detect(_UNREADABLE.sub(" ", text), isPlainText=True)
        _, code, percent, _ = found[0]
        code = code.split("-")[0]
        return Language(_OLD_CODES.get(code, code), percent / 100)

    return identify


def _fasttext(path: Path) -> Identifier:
    try:
        import fasttext
    except ImportError as error:
        raise ConfigError(
            'a fastText model needs the package fasttext: pip install "megagpt[corpora]", or use languages.model=cld2'
        ) from error
    if not path.is_file():
        raise ConfigError(f"languages.model: {path}: no such file; it is cld2, or a file such as lid.176.bin")
    try:
        model = fasttext.load_model(str(path))
    except ValueError as error:
        raise ConfigError(f"languages.model: {path} is not a fastText model: {error}") from error

    def identify(text: str) -> Language:
        line = " ".join(text.encode("utf-8", "replace").decode().splitlines())
        labels, scores = model.predict(line)
        if not labels:
            return Language(_UNKNOWN, 0.0)
        return Language(labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0))

    return identify
