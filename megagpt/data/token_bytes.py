"""The bytes that each token of a tokenizer.json stands for, by its decoder: byte-level, or SentencePiece's."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from megagpt.errors import DataError

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""How byte fallback spells a byte."""
SPACE = "\u2581"
"""How SentencePiece spells a space."""
MODELS = ("BPE", "Unigram")
_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
"""Decoders that SentencePiece's tokenizers are made of."""


class Decoding(NamedTuple):
    """How tokens become text."""

    byte_level: bool
    """Tokens are spelled in GPT-2's characters for bytes; otherwise as text, with SPACE for spaces."""
    strips_space: bool
    """A text loses the space at its start, which encoding has put there."""

    def piece(self, token: str) -> bytes:
        """The bytes of a token of the model."""
        if self.byte_level:
            found = [_TO_BYTE.get(character) for character in token]
            return token.encode() if None in found else bytes(found)
        byte = BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else self.added(token)

    def added(self, token: str) -> bytes:
        """The bytes of an added token that is no special one."""
        return (token if self.byte_level else token.replace(SPACE, " ")).encode()


def decoding(spec: dict[str, Any], name: str) -> Decoding:
    """The decoding of a tokenizer.json. Raises DataError for one that does not give back every text."""
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
    """How byte-level BPE spells bytes: printable Latin-1 stands for itself, the others are numbered from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_TO_BYTE = _byte_of_character()
