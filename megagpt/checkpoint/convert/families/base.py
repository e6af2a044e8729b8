"""Description of a family: functions that read and write its config.json, and the layout of its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.families.tensors import Layout
from megagpt.checkpoint.convert.families.values import Values
from megagpt.config.architecture import RopeScalingConfig
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

BIASES = ("bias", "qkv_bias", "attention_output_bias", "output_bias")


@dataclass(frozen=True)
class Family:
    """A class of transformers for causal language models."""

    model_type: str
    """Its `model_type` in config.json."""
    architecture: str
    """Name of the class."""
    base: str
    """Name of the class without an output projection; its tensors' names lack the first part."""
    models: str
    """Published models of the family, for the documentation."""
    read: Callable[[Values], ModelConfig]
    """The model that a config.json describes. Raises CheckpointError for features that megagpt lacks."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The family's own keys of a config.json; `Family.config` adds the keys of all families.

    It need not check that the family can represent the model: the result is read again and compared."""
    tensors: Callable[[ModelConfig], Mapping[str, Layout]]
    """{megagpt's module: layout of its parameters}; modules of a layer have their names within the layer."""
    head: str = "lm_head"
    """Name of the output projection in files."""
    limits: str = ""
    """Models of the family that are refused, for the documentation."""

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """The whole config.json, except the names of classes, the dtype and special tokens."""
        common = {
            "vocab_size": model.vocab_size,
            "tie_word_embeddings": model.tie_embeddings,
            "initializer_range": model.init_std,
            "use_cache": True,
        }
        return common | {"model_type": self.model_type} | self.write(model)

    def held(self, model: ModelConfig) -> ModelConfig:
        """The model as the family represents it; it may have biases that `model` lacks.

        Raises CheckpointError whose message names the features of `model` that the family lacks.
        """
        try:
            theirs = self.read(Values(Path(model.name) / "config.json", self.model_type, self.config(model)))
        except CheckpointError as error:
            raise CheckpointError(str(error).partition(": ")[2]) from None
        mine, kept = effective(model), effective(theirs)
        lacking = [
            name for name in mine if mine[name] != kept[name] and not (name in BIASES and kept[name] and not mine[name])
        ]
        if lacking:
            raise CheckpointError(", ".join(f"model.{name}={shown_value(model, name)}" for name in lacking))
        return theirs


def shown_value(model: ModelConfig, name: str) -> Any:
    """A field's value for a message."""
    value = getattr(model, name)
    return value.kind if isinstance(value, RopeScalingConfig) else value


def effective(model: ModelConfig) -> dict[str, Any]:
    """Fields of a model with all defaults resolved, so that models with equal results have equal fields; no dropout."""
    has_rope = model.position_embedding == "rope"
    windows = [model.window(layer) for layer in range(model.num_layers)]
    return {
        "position_embedding": model.position_embedding,
        "normalization": model.normalization,
        "norm_placement": model.norm_placement,
        "zero_centered_norm": model.zero_centered_norm,
        "norm_epsilon": model.norm_epsilon,
        "parallel_block": model.parallel_block,
        "activation": model.activation,
        "bias": model.bias,
        "qkv_bias": model.has_qkv_bias,
        "attention_output_bias": model.has_attention_output_bias,
        "output_bias": model.output_bias,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "head_dim": model.head_size,
        "ffn_hidden_size": model.ffn_size,
        "sequence_length": model.sequence_length,
        "vocab_size": model.vocab_size,
        "rope_base": has_rope and _rounded(model.rope_base),
        "rope_local_base": has_rope and any(windows) and _local(model),
        "rotary_fraction": has_rope and int(model.head_size * model.rotary_fraction),
        "rope_scaling": has_rope and _scaling(model),
        "embedding_scale": _rounded(model.embedding_scale or 1.0),
        "tie_embeddings": model.tie_embeddings,
        "qk_layernorm": model.qk_layernorm,
        "qk_norm_scope": model.qk_layernorm and model.qk_norm_scope,
        "attention_scale": _rounded(model.attention_scale or model.head_size**-0.5),
        "attention_softcap": model.attention_softcap,
        "logit_softcap": model.logit_softcap,
        "attention_pattern": [window is not None for window in windows],
        "attention_window": next(filter(None, windows), None),
    }


def _rounded(value: float) -> str:
    """A number without its last digits, which depend on how it was computed."""
    return f"{value:.10g}"


def _local(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Base and scaling of rotary positions in banded layers; with a base of their own they have no scaling."""
    if model.rope_local_base is None:
        return _rounded(model.rope_base), _scaling(model)
    return _rounded(model.rope_local_base), {"kind": "none"}


def _scaling(model: ModelConfig) -> dict[str, Any]:
    """The fields of the scaling of rotary positions that its kind uses."""
    scaling = model.rope_scaling
    values: dict[str, Any] = {"kind": scaling.kind}
    if scaling.kind != "none":
        values["factor"] = scaling.factor
    if scaling.kind in ("llama3", "yarn"):
        values["original_length"] = scaling.original_length
    names = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow", "truncate")}
    values |= {name: getattr(scaling, name) for name in names.get(scaling.kind, ())}
    if scaling.kind == "yarn":
        values["attention_factor"] = scaling.attention_factor
    return values
