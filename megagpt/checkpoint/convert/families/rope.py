"""Rotary positions in config.json with transformers' old and new names, read as transformers does."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from megagpt.checkpoint.convert.families.values import REQUIRED, Values
from megagpt.checkpoint.files import shown
from megagpt.config.architecture import RopeScalingConfig
from megagpt.config.schema import ModelConfig

BASE = 10000.0
"""transformers' default base of the rotary frequencies."""
NAMES = {"default": "none", "linear": "linear", "dynamic": "dynamic", "llama3": "llama3", "yarn": "yarn"}
"""{transformers' name of a kind of scaling: megagpt's name}."""
KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
COMMON = ("rope_theta", "rope_type", "type", "partial_rotary_factor")

log = logging.getLogger(__name__)


def read(
    config: Values,
    kinds: Sequence[str] = tuple(NAMES),
    base: str = "rope_theta",
    fraction: float = 1.0,
    share: str = "",
) -> dict[str, Any]:
    """Fields of `ModelConfig` for rotary positions.

    kinds: the kinds of scaling that the family's class supports. base: the old key of the base. share: the old key of
    the share of rotated dimensions, whose default is `fraction`; "": all dimensions must be rotated. Raises
    CheckpointError.
    """
    outer, inner = config.number(base, None), config.object("rope_scaling") or config.object("rope_parameters") or {}
    share_given = config.number(share, None) if share else None
    if not share:
        config.only(partial_rotary_factor=(1.0, 1))
    found = Values(config.path, f"{config.kind}, rope_parameters", inner)
    scaling = _scaling(found, kinds, config)
    theta, turned = found.number("rope_theta", None), found.number("partial_rotary_factor", None)
    if not share:
        found.only(partial_rotary_factor=(1.0, 1))
    if inner:
        config.used["rope_parameters"] = found.used
    if None not in (theta, outer) and theta != outer:
        log.warning(
            "%s: %s is %s and rope_parameters.rope_theta is %s; taken is the latter, as transformers does",
            config.path,
            base,
            outer,
            theta,
        )
    return {
        "position_embedding": "rope",
        "rope_base": float(next(value for value in (theta, outer, BASE) if value is not None)),
        "rotary_fraction": float(next(value for value in (turned, share_given, fraction) if value is not None)),
        "rope_scaling": scaling,
    }


def _scaling(found: Values, kinds: Sequence[str], config: Values) -> RopeScalingConfig:
    """The scaling that the object `found` in `config` describes. An original length outside of it takes precedence."""
    kind = found.values.get("rope_type", found.values.get("type", "default"))
    if kind in ("longrope", "su") or (kind == "yarn" and "yarn" not in kinds):
        raise found.refusal(
            f"rope_type={shown(kind)}, which has a factor for every frequency; the nearest is the same model at its"
            " original length, without rope_scaling: such weights are published beside the long ones"
        )
    if not isinstance(kind, str) or kind not in kinds:
        raise found.refusal(f"rope_type={shown(kind)}; known are {', '.join(kinds)}")
    found.used["rope_type"] = kind
    if unknown := sorted(set(found.values) - {*COMMON, *KEYS[kind]}):
        raise found.refusal(f"rope_parameters.{shown(unknown[0])} beside rope_type={kind}")
    if kind == "default":
        return RopeScalingConfig()
    names = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    values = {name: float(found.number(name, REQUIRED)) for name in names}
    if kind in ("llama3", "yarn"):
        key = "original_max_position_embeddings"
        outside, within = config.integer(key), found.integer(key)
        values["original_length"] = outside or within or config.integer("max_position_embeddings", REQUIRED)
    if kind == "yarn":
        values["truncate"] = found.flag("truncate", True)
        for name in ("beta_fast", "beta_slow", "attention_factor"):
            if (value := found.number(name, None)) is not None:
                values[name] = float(value)
    factor = float(found.number("factor", REQUIRED))
    scales = [found.number(name, None) for name in ("mscale", "mscale_all_dim")] if kind == "yarn" else []
    if scales and all(scales) and "attention_factor" not in values:  # else transformers does not look at them
        values["attention_factor"] = _warmth(factor, scales[0]) / _warmth(factor, scales[1])
    return RopeScalingConfig(kind=NAMES[kind], factor=factor, **values)


def _warmth(factor: float, scale: float) -> float:
    """YaRN's factor of queries and keys (arXiv 2309.00071), as transformers scales it."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def parameters(model: ModelConfig, partial: bool = False) -> dict[str, Any]:
    """`rope_parameters` in the form of transformers 5."""
    scaling, default = model.rope_scaling, RopeScalingConfig()
    kind = next(theirs for theirs, ours in NAMES.items() if ours == scaling.kind)
    values: dict[str, Any] = {"rope_type": kind, "rope_theta": model.rope_base}
    if partial:
        values["partial_rotary_factor"] = model.rotary_fraction
    if kind != "default":
        values["factor"] = scaling.factor
    if kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = scaling.original_length
    if kind == "llama3":
        values |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if kind == "yarn":
        names = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        given = {name: getattr(scaling, name) for name in names}
        values |= {name: value for name, value in given.items() if value != getattr(default, name)}
    return values


def write(model: ModelConfig) -> dict[str, Any]:
    """The keys of transformers 5 and of older versions."""
    values = parameters(model)
    return {"rope_theta": model.rope_base, "rope_parameters": values} | old_scaling(values)


def old_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` in the form of transformers before version 5; {} without scaling."""
    if values["rope_type"] == "default":
        return {}
    return {"rope_scaling": {key: value for key, value in values.items() if key != "partial_rotary_factor"}}
