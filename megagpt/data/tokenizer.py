"""The byte-level BPE tokenizer of GPT-2 and GPT-3, trained and run by Hugging Face `tokenizers`.

Every byte sequence can be encoded, and decoding gives the bytes back exactly. A tokenizer is one `tokenizer.json`;
its SHA-256 is what a corpus remembers about it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megagpt.config.inputs import how_to_make
from megagpt.data.files import open_input, write_atomic
from megagpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
"""The token that ends every document."""

LARGEST = 64 << 20
"""Bytes of the largest tokenizer.json that is read; it becomes several times as large in memory."""

PIECE = 1 << 18
"""Characters that are encoded at a time, about, where the tokenizer allows it."""

_BORDER = re.compile(r"""[\w.,;:!?)"'。」](?=[ \n])""")
"""The end of something, before white space."""


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, content: bytes, name: str = "the tokenizer") -> None:
        """Read `content`, the bytes of a tokenizer.json; `name` is what errors call it. Raises DataError."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{name} is not a tokenizer.json of Hugging Face tokenizers: {error!s:.300}") from None
        spec = json.loads(content)
        if (spec.get("decoder") or {}).get("type") != "ByteLevel":
            raise DataError(f"{name} is not a byte-level BPE; train one with `megagpt data tokenizer`")
        end_of_text = self._tokenizer.token_to_id(END_OF_TEXT)
        if end_of_text is None:
            raise DataError(f"{name} has no {END_OF_TEXT} token to end documents with")
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" inside a document is text like any other
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        splitter = spec.get("pre_tokenizer") or {}
        self._cuttable = (
            splitter.get("type") == "ByteLevel"
            and splitter.get("use_regex", True)  # older files do not say
            and not splitter.get("add_prefix_space", True)
            and not spec.get("normalizer")
        )
        self._content, self._name = content, name
        self.end_of_text_id: int = end_of_text
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.sha256: str = hashlib.sha256(content).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read the tokenizer.json at `path`. Raises DataError when it is missing or is no such file."""
        try:
            with open_input(path) as file:
                content = file.read(LARGEST + 1)
        except (DataError, OSError) as error:
            remedy = how_to_make(path) or "`megagpt data tokenizer` makes one"
            reason = str(error).removeprefix(f"cannot read {path}: ")
            raise DataError(f"cannot read the tokenizer {path}: {reason}; {remedy}") from None
        if len(content) > LARGEST:
            raise DataError(f"{path} has more than {LARGEST:,} bytes, which no tokenizer.json has")
        return cls(content, str(path))

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json to `path`, whole or not at all."""
        write_atomic(path, self._content)

    def to_json(self) -> str:
        """The tokenizer.json as the installed library writes it, whatever version wrote the file."""
        return self._tokenizer.to_str()

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """This tokenizer with further special tokens after its own, whose ids stay; what it has is not added again."""
        spec = json.loads(self.to_json())
        vocab, added = spec["model"]["vocab"], spec["added_tokens"]
        for token in added:  # the library numbers added tokens after the model's, unless the model knows them too
            vocab.setdefault(token["content"], token["id"])
        present = {token["content"] for token in added}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for name in names:
            if name not in present:
                added.append({"id": vocab.setdefault(name, len(vocab)), "content": name, **flags, "special": True})
        return Tokenizer(json.dumps(spec, ensure_ascii=False, indent=2).encode(), "the grown tokenizer")

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; strings that look like special tokens are encoded as plain text."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if any(len(text) > PIECE for text in texts):
            return [self.encode(text) for text in texts]
        return [item.ids for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _pieces(self, text: str) -> Iterator[str]:
        """`text` in pieces whose tokens are together the tokens of the whole.

        The library's intermediate results are a hundred times as large as the text, so a long one is encoded piecemeal.
        GPT-2's pattern has no token with white space after something else, so any such place is a border.
        """
        start = 0
        while self._cuttable and len(text) - start > PIECE and (border := _BORDER.search(text, start + PIECE)):
            yield text[start : border.end()]
            start = border.end()
        yield text[start:]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for, which a cut may leave as broken UTF-8; special tokens give none."""
        table = self._bytes_of_token
        return b"".join([table[index] for index in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; broken UTF-8 becomes U+FFFD, special tokens give nothing."""
        return self.decode_bytes(ids).decode(errors="replace")

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 [vocab_size]: the number of bytes that each token stands for, 0 for special tokens."""
        return np.array([len(item) for item in self._bytes_of_token])

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens, end-of-text among them, by what they look like."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return {token.content: index for index, token in added if token.special}

    def first_difference(self, older: "Tokenizer") -> int | None:
        """The first id of `older` that is another token here, or none; None when all of them are here."""
        name, was = self._tokenizer.id_to_token, older._tokenizer.id_to_token
        return next((index for index in range(older.vocab_size) if name(index) != was(index)), None)

    @cached_property
    def _bytes_of_token(self) -> list[bytes]:
        to_byte = _byte_of_character()
        table = {
            index: b"" if token.special else token.content.encode()
            for index, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        for token, index in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if index not in table:  # a model may list its added tokens too, spelled as they are
                strange = next((character for character in token if character not in to_byte), None)
                if strange is not None:
                    raise DataError(f"{self._name}: token {index} has {strange!r}, which byte-level BPE does not use")
                table[index] = bytes(to_byte[character] for character in token)
        missing = next((index for index in range(self.vocab_size) if index not in table), None)
        if missing is not None:
            raise DataError(f"{self._name} has {self.vocab_size:,} tokens, but none has the id {missing}")
        return [table[index] for index in range(self.vocab_size)]


def _byte_of_character() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable Latin-1 stands for itself, the others are numbered from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of `vocab_size` tokens, the 256 bytes and end-of-text (the last one) included.

    The same texts always give the same tokenizer. Texts too short for so many merges give fewer tokens.
    """
    if vocab_size < 257:
        raise DataError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}), not {vocab_size}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits by GPT-2's pattern
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return Tokenizer(tokenizer.to_str(pretty=True).encode())
