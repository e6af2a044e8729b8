"""The bytes of each token of a tokenizer.json, for byte-level decoders and SentencePiece's decoders."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from megagpt.errors import DataError

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""Name of a byte's token in byte fallback."""
SPACE = "\u2581"
"""SentencePiece's character for a space."""
MODELS = ("BPE", "Unigram")
_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
"""Steps of the decoders of SentencePiece's tokenizers."""


class Decoding(NamedTuple):
    """The method by which tokens become text."""

    byte_level: bool
    """True: tokens consist of GPT-2's characters for bytes. False: of text, with SPACE for spaces."""
    strips_space: bool
    """Decoding removes the space at the start of a text, which encoding has added."""

    def piece(self, token: str) -> bytes:
        """The bytes of a token of the model."""
        if self.byte_level:
            found = [_TO_BYTE.get(character) for character in token]
            return token.encode() if None in found else bytes(found)
        byte = BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else self.added(token)

    def added(self, token: str) -> bytes:
        """The bytes of an added token that is not special."""
        return (token if self.byte_level else token.replace(SPACE, " ")).encode()


def decoding(spec: dict[str, Any], name: str) -> Decoding:
    """The decoding of a tokenizer.json. Raises DataError if decoding cannot restore every text.

    spec: the object of the file
    name: name of the file, for messages
    """
    model, steps = spec.get("model") or {}, list(_steps(spec.get("decoder")))
    kinds = {step.get("type") for step in steps}
    advice = "megagpt takes byte-level BPE, and BPE and unigram of SentencePiece with byte fallback"
    if model.get("type", "BPE") not in MODELS:
        raise DataError(f"{name} is {model['type']}, whose tokens do not give back every text: {advice}")
    if kinds and kinds <= {"ByteLevel", "Fuse"}:
        return Decoding(True, False)
    if not kinds or not kinds <= _SENTENCEPIECE:
        found = ", ".join(sorted(map(str, kinds - _SENTENCEPIECE))) or "none"
        raise DataError(f"{name} is not a byte-level BPE, nor SentencePiece's (its decoder is {found}): {advice}")
    if not model.get("byte_fallback") or "ByteFallback" not in kinds:
        raise DataError(f"{name} has no byte fallback, so text with rare characters would lose them: {advice}")
    vocab = model.get("vocab")
    known = set(vocab if isinstance(vocab, dict) else (piece for piece, _ in vocab))
    if missing := next((f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in known), None):
        raise DataError(f"{name} has byte fallback, but no token {missing}: {advice}")
    for step in steps:
        ordinary = step["type"] != "Replace" or (step.get("pattern"), step.get("content")) == ({"String": SPACE}, " ")
        if not ordinary or step.get("replacement", SPACE) != SPACE or step.get("stop", 0):
            raise DataError(f"{name} has a decoder that megagpt does not know: {step}")
    return Decoding(False, any(map(_strips, steps)))


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A decoder's steps, in order."""
    if decoder and decoder.get("type") == "Sequence":
        for one in decoder["decoders"]:
            yield from _steps(one)
    elif decoder:
        yield decoder


def _strips(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return step.get("content") == " " and step.get("start") == 1
    return step["type"] == "Metaspace" and (
        step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
    )


def _byte_of_character() -> dict[str, int]:
    """The byte of each character of byte-level BPE: printable Latin-1 stands for itself, others begin at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_TO_BYTE = _byte_of_character()
