"""Text to tokens and back by any tokenizer.json of Hugging Face `tokenizers` that gives every text back.

Own tokenizers are byte-level BPE, as GPT-2's and GPT-3's. Those of published models may be byte-level BPE with another
splitting pattern, or SentencePiece's BPE or unigram with byte fallback; `companions` says what lies beside their files.
A corpus remembers the SHA-256 of its tokenizer.json.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megagpt.config.inputs import how_to_make
from megagpt.data.companions import SENTENCEPIECE, Companions, companion_path, end_of_text, read_companions
from megagpt.data.files import open_input, write_atomic
from megagpt.data.fim_names import END_OF_MIDDLE
from megagpt.data.token_bytes import decoding
from megagpt.data.unspellable import Unspellable
from megagpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
"""The token that ends every document, in own tokenizers."""

LARGEST = 64 << 20
"""Bytes of the largest tokenizer.json that is read; it becomes several times as large in memory."""

PIECE = 1 << 18
"""Characters that are encoded at a time, about, where the tokenizer allows it."""

_GPT2_BORDER = re.compile(r"""[\w.,;:!?)"'。」](?=[ \n])""")
"""The end of something, before white space: GPT-2's pattern has no token with white space after something else."""
_WORD_BORDER = re.compile(r"[^\W_](?= )")
"""The end of a word or number before a space, which no pattern has in one token; some have line ends after others."""


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, content: bytes, name: str = "the tokenizer", companions: Companions | None = None) -> None:
        """Read `content`, the bytes of a tokenizer.json; `name` is what errors call it. Raises DataError.

        companions: what else is known of it.
        """
        try:
            spec = json.loads(content)
            self._decoding = decoding(spec, name)
            self.unspellable = Unspellable(spec, name)
            self._tokenizer = tokenizers.Tokenizer.from_str(self.unspellable.spec)
        except DataError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{name} is not a tokenizer.json of Hugging Face tokenizers: {error!s:.300}") from None
        self.companions = companions or Companions()
        self.today: date | None = None
        """The date that the chat template gets; None for that of the computer."""
        ending = end_of_text(self.companions, self.special_ids)
        if ending is None:
            raise DataError(
                f"{name} has no {END_OF_TEXT} token to end documents with, nor another of a usual name: put the"
                " tokenizer_config.json of its model beside it, whose eos_token names the one"
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._border = _border(spec)
        self.content, self._name = content, name
        """The bytes of the tokenizer.json."""
        self.end_of_text, self.end_of_text_id = ending, self.special_ids[ending]
        """The token that ends every document, and its id."""
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.sha256: str = hashlib.sha256(content).hexdigest()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, str, Companions], dict[str, Any]]:
        """For another process: the files, which it reads anew."""
        return Tokenizer, (self.content, self._name, self.companions), {"today": self.today}

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read the tokenizer.json at `path`, and what lies beside it. Raises DataError when it is missing or no such
        file."""
        try:
            with open_input(path) as file:
                content = file.read(LARGEST + 1)
        except (DataError, OSError) as error:
            remedy = how_to_make(path) or "`megagpt data tokenizer` makes one"
            if os.path.lexists(Path(path).with_name(SENTENCEPIECE)):
                remedy = f"{SENTENCEPIECE} alone is not enough: let transformers write the tokenizer.json"
            reason = str(error).removeprefix(f"cannot read {path}: ")
            raise DataError(f"cannot read the tokenizer {path}: {reason}; {remedy}") from None
        if len(content) > LARGEST:
            raise DataError(f"{path} has more than {LARGEST:,} bytes, which no tokenizer.json has")
        return cls(content, str(path), read_companions(path, hashlib.sha256(content).hexdigest()))

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json to `path`, whole or not at all, and what is known of it beside."""
        write_atomic(path, self.content)
        if self.companions.texts or self.companions.config:
            write_atomic(companion_path(path), self.companions.dump(self.sha256).encode())

    def to_json(self) -> str:
        """The tokenizer.json as the installed library writes it, whatever version wrote the file."""
        return tokenizers.Tokenizer.from_str(self.content.decode()).to_str()

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """This tokenizer with further special tokens after its own, whose ids stay; what it has is not added again."""
        spec = json.loads(self.to_json())
        vocab, added = spec["model"]["vocab"], spec["added_tokens"]
        present = {token["content"] for token in added}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        if isinstance(vocab, dict):
            for token in added:  # the library numbers added tokens after the model's, unless the model knows them too
                vocab.setdefault(token["content"], token["id"])
        for number, name in enumerate(one for one in names if one not in present):
            index = self.vocab_size + number
            if isinstance(vocab, dict):
                index = vocab.setdefault(name, len(vocab))
            added.append({"id": index, "content": name, **flags, "special": True})
        return self.replaced(spec)

    def replaced(self, spec: dict) -> "Tokenizer":
        """A tokenizer that was made of this one by changing its tokenizer.json, with the same companions,
        but for those that hold the vocabulary."""
        content = json.dumps(spec, ensure_ascii=False, indent=2).encode()
        return Tokenizer(content, "the grown tokenizer", self.companions.without_originals())

    # Encoding

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; strings that look like special tokens are encoded as plain text."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._encoded([piece])[0]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if any(len(text) > PIECE for text in texts):
            return [self.encode(text) for text in texts]
        return self._encoded(texts)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of the beginning of a document; of no text, what starts a document."""
        return self.encode_prompts([text])[0]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for each text."""
        return [[*self.start_ids, *ids] or [self.end_of_text_id] for ids in self.encode_batch(texts)]

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a text that goes on after another: SentencePiece's have no space put before it."""
        if not self.puts_space:
            return self.encode(text)
        ids = self.encode(f"\0{text}")  # a byte of its own, which no piece joins
        return ids[ids.index(self._zero) + 1 :]

    def encode_marked(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text in which special tokens are meant, spelled as `unspellable` has them, and for each the
        characters of the text that it stands for, (first, last + 1)."""
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError:
            raise _no_text(text) from None
        return found.ids, found.offsets

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [item.ids for item in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            raise _no_text("".join(texts)) from None

    def _pieces(self, text: str) -> Iterator[str]:
        """`text` in pieces whose tokens are together the tokens of the whole.

        The library's intermediate results are a hundred times as large as the text, so a long one is encoded piecemeal
        where the splitting pattern is one that has borders.
        """
        start = 0
        while self._border and len(text) - start > PIECE and (border := self._border.search(text, start + PIECE)):
            yield text[start : border.end()]
            start = border.end()
        yield text[start:]

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for, which a cut may leave as broken UTF-8; special tokens give none."""
        table = self._bytes_of_token
        return b"".join([table[index] for index in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, as a whole; broken UTF-8 becomes U+FFFD, special tokens give nothing."""
        return self.without_start(self.decode_bytes(ids).decode(errors="replace"))

    def without_start(self, text: str) -> str:
        """A text without the space that SentencePiece puts at the start of every text."""
        return text.removeprefix(" ") if self.puts_space else text

    @property
    def puts_space(self) -> bool:
        """Whether a text's first token has a space before it that is no part of the text."""
        return self._decoding.strips_space

    @property
    def is_byte_level(self) -> bool:
        """Whether tokens are spelled in GPT-2's characters for bytes."""
        return self._decoding.byte_level

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 [vocab_size]: the number of bytes that each token stands for, 0 for special tokens."""
        return np.array([len(item) for item in self._bytes_of_token])

    # Special tokens

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens, end-of-text among them, by what they look like."""
        return self.unspellable.ids

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids of the special tokens that end a generated text: of documents and, where there are turns, of turns."""
        special = self.special_ids
        named = special.get(self.companions.special_tokens.get("eos_token", self.end_of_text))
        ends = {self.end_of_text_id, *(index for index in self.companions.ends if index in special.values())}
        inserted = special.get(END_OF_MIDDLE)
        return frozenset({*ends, *(index for index in (named, inserted) if index is not None)})

    @property
    def bos_id(self) -> int | None:
        """Id of the bos_token, if a companion names one."""
        return self.special_ids.get(self.companions.special_tokens.get("bos_token", ""))

    @cached_property
    def start_ids(self) -> list[int]:
        """What stands before every document: bos, if the model was trained with it, or nothing.

        tokenizer_config.json's add_bos_token says so, otherwise the post-processor of tokenizer.json.
        """
        if added := self.companions.added:
            return [self.bos_id] if added["add_bos_token"] and self.bos_id is not None else []
        found = self._tokenizer.encode("a", add_special_tokens=True)
        before = found.special_tokens_mask.index(0)
        return found.ids[:before]

    def first_difference(self, older: "Tokenizer") -> int | None:
        """The first id of `older` that is another token here, or none; None when all of them are here."""
        name, was = self.unspellable.name_of, older.unspellable.name_of
        return next((index for index in range(older.vocab_size) if name(index) != was(index)), None)

    @cached_property
    def _zero(self) -> int:
        return self._tokenizer.token_to_id("<0x00>")

    @cached_property
    def _bytes_of_token(self) -> list[bytes]:
        special, table = set(self.special_ids.values()), {}
        added = self._tokenizer.get_added_tokens_decoder()
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            text = self._decoding.added(token) if index in added else self._decoding.piece(token)
            table[index] = b"" if index in special else text
        missing = next((index for index in range(self.vocab_size) if index not in table), None)
        if missing is not None:
            raise DataError(f"{self._name} has {self.vocab_size:,} tokens, but none has the id {missing}")
        return [table[index] for index in range(self.vocab_size)]


def _border(spec: dict) -> re.Pattern[str] | None:
    """Where a text can be cut without another token, as far as that is known of a tokenizer.json."""
    splitter, normalizer = spec.get("pre_tokenizer") or {}, spec.get("normalizer") or {"type": None}
    stripping = any(token["lstrip"] or token["rstrip"] for token in spec["added_tokens"] if not token["special"])
    if splitter.get("add_prefix_space", splitter.get("type") == "ByteLevel") or stripping:
        return None
    if splitter.get("type") == "ByteLevel":
        use_regex = splitter.get("use_regex", True)  # older files do not say
        return _GPT2_BORDER if use_regex and normalizer["type"] is None else None
    steps = splitter.get("pretokenizers", ())
    known = (
        len(steps) == 2
        and steps[0]["type"] == "Split"
        and steps[0]["behavior"] == "Isolated"
        and not steps[0]["invert"]
        and steps[0]["pattern"].get("Regex", "").endswith(r"|\s+(?!\S)|\s+")
        and steps[1]["type"] == "ByteLevel"
        and not steps[1].get("add_prefix_space", True)
        and not steps[1].get("use_regex", True)
    )
    return _WORD_BORDER if known and normalizer["type"] in (None, "NFC") else None


def _no_text(text: str) -> DataError:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return DataError(f"{text[error.start]!r} is half of a character (a surrogate), and no text: mend the text")
    return DataError("what is to be encoded is no text")


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
