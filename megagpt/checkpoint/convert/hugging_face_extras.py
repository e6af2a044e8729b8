"""What a folder of transformers says of the tokenizer and of generation: kept beside our checkpoint, word by word.

`data.companions` says what megagpt reads of it. It is plain data, of which what names code is left out. What describes
the tokenizer is only given back beside the same tokenizer.json.
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
"""Keys that name code, which is not passed on."""


def read(folder: Path) -> Companions:
    """The texts of the files of a folder of transformers, and of config.json the special tokens and the family.

    Raises CheckpointError.
    """
    texts = {name: _text(folder, name) for name in FILES if os.path.lexists(folder / name)}
    return Companions(texts, facts_of_config(_object(folder, CONFIG)))


def _text(folder: Path, name: str) -> str:
    """A file's text; without what names code."""
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
    """Keeps them in a run folder."""
    if extras.texts or extras.config:
        write_text(folder / STORE, extras.dump(extras.tokenizer_sha256 or (tokenizer and tokenizer.sha256)))


def load(folder: Path) -> Companions:
    """Those of a run folder; none where it has none. Raises CheckpointError."""
    if not os.path.lexists(folder / STORE):
        return Companions()
    try:
        return parse_store(read_bytes(inside(folder, STORE), STORE_LIMIT), folder / STORE)
    except DataError as error:
        raise CheckpointError(f"{error}") from None


def fitting(extras: Companions, tokenizer: Tokenizer | None) -> Companions:
    """Those that go with the tokenizer: all but what describes another one."""
    if tokenizer is not None and extras.tokenizer_sha256 in (None, tokenizer.sha256):
        return extras
    if lost := [name for name in OF_TOKENIZER if name in extras.texts]:
        log.warning("%s are of another tokenizer than tokenizer.json, and are written anew", ", ".join(lost))
    texts = {name: text for name, text in extras.texts.items() if name not in OF_TOKENIZER}
    if tokenizer is None:
        return replace(extras, texts=texts)
    if GENERATION in texts:  # ids of special tokens are the old one's, too
        kept = {key: value for key, value in extras.parsed(GENERATION).items() if key not in SPECIAL_IDS}
        texts[GENERATION] = dumped(kept)
    config = {key: value for key, value in extras.config.items() if key not in SPECIAL_IDS}
    return Companions(texts, config)


def completed(kept: Companions, tokenizer: Tokenizer, length: int) -> Companions:
    """With a tokenizer_config.json, and a chat template for a tokenizer that has the roles.

    Without a template other servers refuse conversations.
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
    """Writes them into a folder of transformers; config.json and generation_config.json are the model's to write."""
    for name, text in kept.texts.items():
        if name != GENERATION:
            content = content_of(name, text)
            write_file(folder / name, [memoryview(content)], len(content))
