"""What lies beside a tokenizer.json and says how its tokens are used: special tokens, chat templates, generation.

In a folder of transformers these are several files. Wherever megagpt puts a tokenizer that came with such files, one
file, `huggingface.json`, holds their texts as they were, and the SHA-256 of the tokenizer that they belong to.
"""

import base64
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megagpt.data.files import open_input
from megagpt.errors import DataError

log = logging.getLogger(__name__)

STORE = "huggingface.json"
"""The file that holds the others' texts, beside a tokenizer.json; `companion_path` has the names beside others."""
LIMIT, STORE_LIMIT = 8 << 20, 32 << 20
"""Bytes of the largest companion, and of the file that holds them all."""
CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
OBJECTS = (GENERATION, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
SENTENCEPIECE = "tokenizer.model"
ORIGINALS = (SENTENCEPIECE, "vocab.json", "merges.txt")
"""Files with the vocabulary of the tokenizer.json in older forms. megagpt does not read them."""
FILES = (*OBJECTS, TEMPLATE, *ORIGINALS)
"""Files that are kept, byte by byte."""
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of config.json that say which tokens are special."""
MODEL_TYPE = "model_type"
"""Key of config.json with the family, to which the model goes back if that still has it."""
ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|end\u2581of\u2581sentence|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Names of the token that ends a document, in the order in which they are looked for."""
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that a chat template can name."""


@dataclass(frozen=True)
class Companions:
    """The texts of a tokenizer's companion files, and what they say. Reading them raises DataError."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """By name, of FILES. That of the binary SENTENCEPIECE is base64, see `content_of`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The SPECIAL_IDS and the MODEL_TYPE of config.json; nothing else is kept of it."""
    tokenizer_sha256: str | None = None
    """Of the tokenizer.json that they describe; None where they lie beside it in a folder of transformers."""

    def parsed(self, name: str) -> dict[str, Any]:
        """The object of a JSON file; an empty one where there is no such file."""
        try:
            values = json.loads(self.texts.get(name, "{}"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise DataError(f"{name}, beside the tokenizer, does not hold a JSON object")
        return values

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by what they are for, such as eos_token."""
        found = {}
        for role in ROLES:
            for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
                value = self.parsed(name).get(role)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str) and role not in found:
                    found[role] = text
        return found

    @property
    def ends(self) -> list[int]:
        """Ids that end generation, as generation_config.json has them, or config.json where it says nothing."""
        given = self.parsed(GENERATION).get("eos_token_id")
        given = self.config.get("eos_token_id") if given is None else given
        given = given if isinstance(given, list) else [given]
        return [value for value in given if type(value) is int]

    @property
    def added(self) -> dict[str, bool]:
        """`add_bos_token` and `add_eos_token`, where tokenizer_config.json has one of them.

        As for transformers, they then count instead of the post-processor of tokenizer.json.
        """
        config = self.parsed(TOKENIZER_CONFIG)
        names = ("add_bos_token", "add_eos_token")
        return {name: bool(config.get(name)) for name in names} if any(name in config for name in names) else {}

    @cached_property
    def templates(self) -> dict[str, str]:
        """Chat templates by name, a single one as "default"; chat_template.jinja counts, where there is one."""
        if TEMPLATE in self.texts:
            return {"default": self.texts[TEMPLATE]}
        given = self.parsed(TOKENIZER_CONFIG).get("chat_template")
        if isinstance(given, str):
            return {"default": given}
        if isinstance(given, list) and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in given):
            given = {one.get("name"): one.get("template") for one in given}
        found = {} if given is None else given
        if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise DataError(f"chat_template of {TOKENIZER_CONFIG} holds neither a text nor texts by name")
        return found

    def without_templates(self) -> "Companions":
        """The same for a tokenizer whose conversations are written in another way."""
        config = {key: value for key, value in self.parsed(TOKENIZER_CONFIG).items() if key != "chat_template"}
        texts = {name: text for name, text in self.texts.items() if name != TEMPLATE}
        if TOKENIZER_CONFIG in texts:
            texts[TOKENIZER_CONFIG] = dumped(config)
        return Companions(texts, self.config, self.tokenizer_sha256)

    def without_originals(self) -> "Companions":
        """The same for a tokenizer with another vocabulary."""
        texts = {name: text for name, text in self.texts.items() if name not in ORIGINALS}
        return Companions(texts, self.config, self.tokenizer_sha256)

    def dump(self, tokenizer_sha256: str | None) -> str:
        """The text of the file that holds them beside a tokenizer.json of that SHA-256."""
        values = {"tokenizer_sha256": tokenizer_sha256, **self.texts, CONFIG: dict(self.config)}
        return dumped(values)


def companion_path(tokenizer: str | Path) -> Path:
    """The file that holds the companions of a tokenizer's file, of whatever name."""
    path = Path(tokenizer)
    return path.with_name(STORE) if path.name == "tokenizer.json" else path.with_suffix(f".{STORE}")


def read_companions(tokenizer: str | Path, sha256: str) -> Companions:
    """What lies beside the tokenizer.json of that SHA-256: `huggingface.json`, or files as transformers has them.

    Those of another tokenizer are left aside, with a warning. Raises DataError for files that are damaged.
    """
    store, folder = companion_path(tokenizer), Path(tokenizer).parent
    if os.path.lexists(store):
        found = parse_store(_content(store, STORE_LIMIT), store)
        if found.tokenizer_sha256 in (None, sha256):
            return found
        log.warning("%s is of another tokenizer than %s, and is not used for it", store, tokenizer)
        return Companions()
    if Path(tokenizer).name != "tokenizer.json":
        return Companions()
    names = [name for name in FILES if os.path.lexists(folder / name)]
    texts = {name: text_of(name, _content(folder / name, LIMIT), folder) for name in names}
    config = {}
    if texts and os.path.lexists(folder / CONFIG):
        config = _object(text_of(CONFIG, _content(folder / CONFIG, LIMIT), folder), folder / CONFIG)
    return checked(Companions(texts, facts_of_config(config)), folder)


def text_of(name: str, content: bytes, folder: Path) -> str:
    """The text that stands for a companion's bytes: UTF-8, or base64 for SENTENCEPIECE. Raises DataError."""
    if name == SENTENCEPIECE:
        return base64.b64encode(content).decode()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{folder / name} is not UTF-8: {error}") from None


def content_of(name: str, text: str) -> bytes:
    """The companion's bytes, from the text that stands for it."""
    return base64.b64decode(text) if name == SENTENCEPIECE else text.encode()


def parse_store(content: bytes, where: Path) -> Companions:
    """The companions that `dump` wrote, or an older megagpt, with objects in place of texts. Raises DataError."""
    values = _object(text_of(where.name, content, where.parent), where)
    texts = {}
    for name in FILES:
        value = values.get(name)
        if isinstance(value, dict) and name in OBJECTS:
            value = dumped(value)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {name} is {'not a text' if name == TEMPLATE else 'not an object'}")
        if name == SENTENCEPIECE and not re.fullmatch(r"([\w+/]{4})*([\w+/]{2}==|[\w+/]{3}=)?", value or "", re.ASCII):
            raise DataError(f"{where}: {name} is not base64")
        if value is not None:
            texts[name] = value
    config, sha256 = values.get(CONFIG, {}), values.get("tokenizer_sha256")
    if not isinstance(config, dict):
        raise DataError(f"{where}: {CONFIG} is not an object")
    return checked(Companions(texts, facts_of_config(config), sha256 if isinstance(sha256, str) else None), where)


def checked(companions: Companions, where: Path) -> Companions:
    """The same. Raises DataError naming the place where a file of them is damaged."""
    try:
        for name in OBJECTS:
            companions.parsed(name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return companions


def facts_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of config.json: special tokens, ids or lists of them, and the family."""
    known = {key: config[key] for key in SPECIAL_IDS if is_special(config.get(key))}
    return known | {key: config[key] for key in (MODEL_TYPE,) if isinstance(config.get(key), str)}


def dumped(values: Any) -> str:
    """The text of a JSON file, for people to read as well."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def is_special(value: Any) -> bool:
    """Whether a value of config.json is a token id, or a list of some."""
    return type(value) is int or (isinstance(value, list) and all(type(token) is int for token in value))


def end_of_text(companions: Companions, special: Mapping[str, int]) -> str | None:
    """The name of the token that ends documents, of the special tokens; None where none can be told.

    Models that were trained on conversations have several ends. The one with a usual name for documents is taken; then
    tokenizer_config.json's eos_token, then the first of generation_config.json.
    """
    names = {index: name for name, index in special.items()}
    eos = companions.special_tokens.get("eos_token")
    told = [name for name in (eos, *(names.get(index) for index in companions.ends)) if name in special]
    return next((name for name in (*_usual(told), *told, *_usual(special)) if name), None)


def _usual(names: Iterable[str]) -> list[str]:
    return [name for name in ENDS if name in set(names)]


def _content(path: Path, limit: int) -> bytes:
    with open_input(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DataError(f"{path} has more than {limit:,} bytes, which no such file has")
    return content


def _object(text: str, where: Path) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error!s:.200}") from None
    if not isinstance(values, dict):
        raise DataError(f"{where} does not hold an object")
    return values
