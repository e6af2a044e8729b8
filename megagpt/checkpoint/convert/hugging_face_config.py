"""Converts a model's settings to and from transformers' config.json; `families` has the parts that differ by family."""

import logging
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.common import checked_model
from megagpt.checkpoint.convert.families.registry import BY_CLASS, choose, family_of
from megagpt.checkpoint.convert.families.values import HARMLESS, Values
from megagpt.checkpoint.convert.safetensors_files import inside
from megagpt.checkpoint.files import parse_json, read_bytes, shown
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

CONFIG_LIMIT = 1 << 20

log = logging.getLogger(__name__)


def architecture_of(model: ModelConfig, before: str | None = None) -> str:
    """transformers' class for a model, see `registry.choose`. Raises CheckpointError if no class can represent it."""
    return choose(model, before)[0].architecture


def files(architecture: str, model: ModelConfig, dtype: str, end_of_text: int | None) -> dict[str, dict[str, Any]]:
    """{file: values} of config.json and generation_config.json. end_of_text: id of the end-of-text token."""
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    classes = {"architectures": [architecture], "dtype": dtype}
    config = classes | BY_CLASS[architecture].config(model) | special | {"pad_token_id": None}
    return {"config.json": config, "generation_config.json": special}


def read(path: Path) -> tuple[str, ModelConfig, dict[str, Any]]:
    """The class, the model, and the checked part of a config.json.

    Only this part may be given to transformers. Raises CheckpointError naming a feature that megagpt lacks.
    """
    values = parse_json(read_bytes(inside(path.parent, path.name), CONFIG_LIMIT), path)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"{path} is of model_type {shown(kind)}, not one of transformers' names")
    if (quantization := values.get("quantization_config")) is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"{path} has a quantization_config ({shown(method)}): only weights that are not quantized are read; the"
            " nearest is the model that this one was made of"
        )
    try:
        family = family_of(values, kind)
    except CheckpointError as error:
        code = "; its model is code of its own (auto_map), which megagpt does not run" if "auto_map" in values else ""
        raise CheckpointError(f"{path} is of model_type {shown(kind)}: {error}{code}") from None
    if "auto_map" in values:
        log.warning(
            "%s names code of its own (auto_map). It is not run: the model is read as %s, which is transformers' class"
            " for model_type %s",
            path,
            family.architecture,
            kind,
        )
    config = Values(path, kind, values)
    config.only(is_causal=(True,), per_layer_config=(None,))  # transformers reads these in every family
    model = checked_model(family.read(config), path)
    asked = config.used.keys() | config.objects
    if unknown := sorted(key for key in set(values) - asked if not HARMLESS.fullmatch(key)):
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        log.warning("%s: nothing was made of %s%s", path, ", ".join(map(shown, unknown[:10])), more)
    return family.architecture, model, config.used
