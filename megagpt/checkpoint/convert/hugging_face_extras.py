"""Companion files of a transformers folder, about the tokenizer and generation; they are kept unchanged with a run.

`data.companions` says which of their values megagpt reads. They are plain data; keys that name code are removed. Files
that describe the tokenizer are written only together with the same tokenizer.json.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.safetensors_files import inside
from megagpt.checkpoint.files import parse_json, read_bytes, write_file, write_text
from megagpt.data.chat import has_roles, own_template
from megagpt.data.companions import (
    CONFIG,
    FILES,
    GENERATION,
    LIMIT,
    OBJECTS,
    SPECIAL_IDS,
    STORE,
    STORE_LIMIT,
    TOKENIZER_CONFIG,
    Companions,
    content_of,
    dumped,
    facts_of_config,
    parse_store,
    text_of,
)
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError, DataError

log = logging.getLogger(__name__)

OF_TOKENIZER = tuple(name for name in FILES if name != GENERATION)
CODE = ("auto_map", "custom_generate", "trust_remote_code")
"""Keys that name code; they are removed."""


def read(folder: Path) -> Companions:
    """The texts of a transformers folder's companion files, and the special tokens and the family from config.json.

    Raises CheckpointError.
    """
    texts = {name: _text(folder, name) for name in FILES if os.path.lexists(folder / name)}
    return Companions(texts, facts_of_config(_object(folder, CONFIG)))


def _text(folder: Path, name: str) -> str:
    """A file's text without keys that name code."""
    if name in OBJECTS:
        values = _object(folder, name)
        if any(key in values for key in CODE):
            return dumped({key: value for key, value in values.items() if key not in CODE})
    try:
        return text_of(name, read_bytes(inside(folder, name), LIMIT), folder)
    except DataError as error:
        raise CheckpointError(f"{error}") from None


def _object(folder: Path, name: str) -> dict[str, Any]:
    values = parse_json(read_bytes(inside(folder, name), LIMIT), folder / name)
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / name} does not hold an object")
    return values


def save(extras: Companions, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes companions into a run folder."""
    if extras.texts or extras.config:
        write_text(folder / STORE, extras.dump(extras.tokenizer_sha256 or (tokenizer and tokenizer.sha256)))


def load(folder: Path) -> Companions:
    """The companions in a run folder; empty ones if there are none. Raises CheckpointError."""
    if not os.path.lexists(folder / STORE):
        return Companions()
    try:
        return parse_store(read_bytes(inside(folder, STORE), STORE_LIMIT), folder / STORE)
    except DataError as error:
        raise CheckpointError(f"{error}") from None


def fitting(extras: Companions, tokenizer: Tokenizer | None) -> Companions:
    """The companions without files that describe another tokenizer than `tokenizer`."""
    if tokenizer is not None and extras.tokenizer_sha256 in (None, tokenizer.sha256):
        return extras
    if lost := [name for name in OF_TOKENIZER if name in extras.texts]:
        log.warning("%s are of another tokenizer than tokenizer.json, and are written anew", ", ".join(lost))
    texts = {name: text for name, text in extras.texts.items() if name not in OF_TOKENIZER}
    if tokenizer is None:
        return replace(extras, texts=texts)
    if GENERATION in texts:  # its ids of special tokens belong to the old tokenizer
        kept = {key: value for key, value in extras.parsed(GENERATION).items() if key not in SPECIAL_IDS}
        texts[GENERATION] = dumped(kept)
    config = {key: value for key, value in extras.config.items() if key not in SPECIAL_IDS}
    return Companions(texts, config)


def completed(kept: Companions, tokenizer: Tokenizer, length: int) -> Companions:
    """The companions with a tokenizer_config.json and, if the tokenizer has chat roles, a chat template.

    Other servers refuse conversations without a template. length: the model's context length in tokens.
    """
    start = next(map(tokenizer.unspellable.name_of, tokenizer.start_ids), tokenizer.end_of_text)
    ours = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        **dict.fromkeys(("eos_token", "unk_token"), tokenizer.end_of_text),
        "model_max_length": length,
    }
    texts, settings = dict(kept.texts), kept.parsed(TOKENIZER_CONFIG) or ours
    if not kept.templates and has_roles(tokenizer):
        settings = settings | {"chat_template": own_template(tokenizer)}
    if settings != kept.parsed(TOKENIZER_CONFIG):
        texts[TOKENIZER_CONFIG] = dumped(settings)
    return replace(kept, texts=texts)


def write(kept: Companions, folder: Path) -> None:
    """Writes the companions into a transformers folder, except generation_config.json, which `write_model` writes."""
    for name, text in kept.texts.items():
        if name != GENERATION:
            content = content_of(name, text)
            write_file(folder / name, [memoryview(content)], len(content))
