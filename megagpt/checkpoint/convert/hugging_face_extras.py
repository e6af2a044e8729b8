"""What a folder of transformers says of the tokenizer and of generation: kept beside our checkpoint for the way back.

megagpt uses none of it. It is plain data, of which what names code is left out. What describes the tokenizer is only
given back beside the same tokenizer.json.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.common import write_json
from megagpt.checkpoint.convert.safetensors_files import inside
from megagpt.checkpoint.files import parse_json, read_bytes, write_text
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import CheckpointError

log = logging.getLogger(__name__)

FILE = "huggingface.json"
"""File of a run folder that holds them."""
LIMIT = 8 << 20
CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
OBJECTS = (GENERATION, TOKENIZER_CONFIG, "special_tokens_map.json")
TEMPLATE = "chat_template.jinja"
OF_TOKENIZER = (TOKENIZER_CONFIG, "special_tokens_map.json", TEMPLATE)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of config.json and generation_config.json that say which tokens are special."""
MODEL_TYPE = "model_type"
"""Key of config.json with the family, to which the model goes back if that still has it."""
CODE = ("auto_map", "custom_generate", "trust_remote_code")
"""Keys that name code, which is not passed on."""


def read(folder: Path) -> dict[str, Any]:
    """By file: the objects, the template's text, and of config.json the special tokens. Raises CheckpointError."""
    found: dict[str, Any] = {name: _object(folder, name) for name in OBJECTS if os.path.lexists(folder / name)}
    if os.path.lexists(folder / TEMPLATE):
        found[TEMPLATE] = _text(folder)
    config = _object(folder, CONFIG)
    kept = {key: config[key] for key in SPECIAL if _is_special(config.get(key))}
    return found | {CONFIG: kept | {key: config[key] for key in (MODEL_TYPE,) if isinstance(config.get(key), str)}}


def _object(folder: Path, name: str) -> dict[str, Any]:
    values = parse_json(read_bytes(inside(folder, name), LIMIT), folder / name)
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / name} does not hold an object")
    return {key: value for key, value in values.items() if key not in CODE}


def _text(folder: Path) -> str:
    try:
        return read_bytes(inside(folder, TEMPLATE), LIMIT).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / TEMPLATE} is not UTF-8: {error}") from None


def _is_special(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(token) is int for token in value))


def save(extras: Mapping[str, Any], tokenizer: Tokenizer | None, folder: Path) -> None:
    """Keeps them in a run folder."""
    if extras:
        write_json(folder / FILE, {"tokenizer_sha256": tokenizer and tokenizer.sha256, **extras})


def load(folder: Path) -> dict[str, Any]:
    """Those of a run folder; none where it has none. Raises CheckpointError."""
    if not os.path.lexists(folder / FILE):
        return {}
    values = _object(folder, FILE)
    for name, value in values.items():
        if name in (*OBJECTS, CONFIG) and not isinstance(value, dict):
            raise CheckpointError(f"{folder / FILE}: {name} is not an object")
    if not isinstance(values.get(TEMPLATE, ""), str):
        raise CheckpointError(f"{folder / FILE}: {TEMPLATE} is not a text")
    return values


def fitting(extras: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Those that go with the tokenizer: all but what describes another one."""
    named = extras.get("tokenizer_sha256")
    same = tokenizer is not None and named in (None, tokenizer.sha256)
    kept = {name: extras[name] for name in (*OBJECTS, TEMPLATE, CONFIG) if name in extras}
    if lost := [name for name in OF_TOKENIZER if name in kept and not same]:
        log.warning("%s are of another tokenizer than tokenizer.json, and are written anew", ", ".join(lost))
    if tokenizer is not None and not same:  # ids of special tokens are the old one's, too
        for name in kept.keys() & {GENERATION, CONFIG}:
            kept[name] = {key: value for key, value in kept[name].items() if key not in SPECIAL}
    return {name: value for name, value in kept.items() if name not in lost}


def write(kept: Mapping[str, Any], folder: Path) -> None:
    """Writes them into a folder of transformers; config.json and generation_config.json are the model's to write."""
    for name, value in kept.items():
        if name == TEMPLATE:
            write_text(folder / name, value)
        elif name not in (CONFIG, GENERATION):
            write_json(folder / name, value)
