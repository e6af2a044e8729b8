"""Converts a model's settings to and from transformers' config.json."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.common import LAYERS_LIMIT, checked_model
from megagpt.checkpoint.convert.safetensors_files import inside
from megagpt.checkpoint.files import parse_json, read_bytes, shown
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

CONFIG_LIMIT = 1 << 20
KINDS = {"global": "dense", "local": "banded"}
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
"""transformers' names of GELU's tanh approximation."""
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neo": "GPTNeoForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""transformers' classes, by `model_type`."""
ROPE_THETA = 10000.0
"""transformers' base of the rotary frequencies, where none is given."""
REQUIRED = object()
"""Instead of a default: a key without which there is no model."""
HARMLESS = re.compile(
    "model_type|architectures|(torch_)?dtype|transformers_version|use_cache|_name_or_path|(bos|eos|pad|unk|sep)_token_id"
    "|_?attn_implementation|attn_pdrop|(embd|resid)_pdrop|embed_dropout|classifier_dropout|summary_.*|task_specific_params"
    "|n_ctx|reorder_and_upcast_attn|gradient_checkpointing|return_dict|output_(attentions|hidden_states|past)"
    "|pretraining_tp|attention_layers|sliding_window|max_window_layers|is_(decoder|encoder_decoder)|id2label|label2id"
)
"""Keys that do not change what the model computes."""

log = logging.getLogger(__name__)


def architecture_of(model: ModelConfig) -> str:
    """transformers' class for a model. Raises CheckpointError naming the settings that no class has together."""
    banded = "banded" in model.attention_pattern
    gpt = {
        "position_embedding": "learned",
        "normalization": "layernorm",
        "activation": "gelu",
        "qk_layernorm": False,
    }
    llama = {"position_embedding": "rope", "normalization": "rmsnorm", "activation": "swiglu", "bias": False}

    def others(wanted: Mapping[str, Any]) -> list[str]:
        return [f"model.{key}={getattr(model, key)}" for key, value in wanted.items() if getattr(model, key) != value]

    if not others(gpt) and model.query_groups == model.num_attention_heads:
        return "GPTNeoForCausalLM" if banded else "GPT2LMHeadModel"
    if not others(llama) and not banded:
        return "Qwen3ForCausalLM" if model.qk_layernorm else "LlamaForCausalLM"
    against = ["model.num_query_groups"] if model.query_groups != model.num_attention_heads else []
    raise CheckpointError(
        f"no architecture of transformers has this model: GPT-2 and GPT-Neo lack {', '.join(others(gpt) + against)};"
        f" Llama and Qwen3 lack {', '.join(others(llama) + (['banded attention'] if banded else []))}"
    )


def files(architecture: str, model: ModelConfig, dtype: str, end_of_text: int | None) -> dict[str, dict[str, Any]]:
    """config.json and generation_config.json."""
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    common = {
        "architectures": [architecture],
        "dtype": dtype,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "use_cache": True,
        **special,
    }
    gpt2 = {
        "model_type": "gpt2",
        "n_layer": model.num_layers,
        "n_embd": model.hidden_size,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn_size,
        "n_positions": model.sequence_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm_epsilon,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
    }
    names = {kind: name for name, kind in KINDS.items()}
    kinds = [model.attention_pattern[n % len(model.attention_pattern)] for n in range(model.num_layers)]
    gpt_neo = {
        "model_type": "gpt_neo",
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_heads": model.num_attention_heads,
        "intermediate_size": model.ffn_size,
        "max_position_embeddings": model.sequence_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.norm_epsilon,
        "attention_types": [[[names[kind]], 1] for kind in kinds],
        "window_size": model.attention_window,
        "resid_dropout": model.hidden_dropout,
        "embed_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
    }
    llama = {
        "model_type": "qwen3" if architecture == "Qwen3ForCausalLM" else "llama",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "max_position_embeddings": model.sequence_length,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "rms_norm_eps": model.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": model.attention_dropout,
    }
    own = {"GPT2LMHeadModel": gpt2, "GPTNeoForCausalLM": gpt_neo}.get(architecture, llama)
    return {"config.json": common | own, "generation_config.json": special}


def read(path: Path) -> tuple[str, ModelConfig, dict[str, Any]]:
    """The class, the model, and the part of a config.json that says so, each value of it checked.

    That part is what transformers may be given. Raises CheckpointError naming what megagpt does not have.
    """
    values = parse_json(read_bytes(inside(path.parent, path.name), CONFIG_LIMIT), path)
    readers = {"gpt2": _gpt2, "gpt_neo": _gpt_neo, "llama": _llama, "qwen3": _qwen3}
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in readers:
        raise CheckpointError(f"{path} is of model_type {shown(kind)}; known are {', '.join(readers)}")
    if values.get("quantization_config") is not None:
        raise CheckpointError(f"{path} has a quantization_config: only weights that are not quantized are read")
    config = _Values(path, kind, values)
    model = checked_model(readers[kind](config), path)
    if unknown := sorted(key for key in set(values) - set(config.used) if not HARMLESS.fullmatch(key)):
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        log.warning("%s: nothing was made of %s%s", path, ", ".join(map(shown, unknown[:10])), more)
    return CLASSES[kind], model, config.used


@dataclass(frozen=True)
class _Values:
    """The values of a config.json, of which every one that is asked for is checked and noted."""

    path: Path
    kind: str
    values: dict[str, Any]
    used: dict[str, Any] = field(default_factory=dict)

    def _get(self, key: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        """The value; `default` where there is none, and where it is null and None is a default."""
        value = self.values.get(key, default)
        if value is REQUIRED:
            raise self._flaw(f"{key} is missing")
        if not (fits(value) or (value is None and default is None)):
            raise self._flaw(f"{key} is {shown(value)}, not {what}")
        if key in self.values:
            self.used[key] = value
        return value

    def _flaw(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a complete config of {self.kind}: {message}")

    def integer(self, key: str, default: int | object | None = None) -> Any:
        """A positive whole number."""
        return self._get(key, default, lambda value: type(value) is int and 0 < value < 1 << 40, "a positive integer")

    def number(self, key: str, default: float | None) -> Any:
        """A finite number."""
        return self._get(
            key, default, lambda value: type(value) in (int, float) and math.isfinite(value), "a finite number"
        )

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self._get(key, default, lambda value: isinstance(value, bool), "true or false")

    def only(self, **allowed: Sequence[Any]) -> None:
        """Raises CheckpointError for a key with a value that megagpt's models do not have."""
        for key, good in allowed.items():
            if key in self.values:
                value = self.values[key]
                if not any(type(value) is type(known) and value == known for known in good):
                    raise CheckpointError(f"{self.path}: megagpt has no model with {key}={shown(value)}")
                self.used[key] = value


def _gpt2(config: _Values) -> ModelConfig:
    config.only(
        activation_function=GELU,
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    return ModelConfig(
        name=config.path.parent.name,
        num_layers=config.integer("n_layer", REQUIRED),
        hidden_size=config.integer("n_embd", REQUIRED),
        num_attention_heads=config.integer("n_head", REQUIRED),
        ffn_hidden_size=config.integer("n_inner"),
        sequence_length=config.integer("n_positions", 1024),
        vocab_size=config.integer("vocab_size", REQUIRED),
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.flag("tie_word_embeddings", True),
        hidden_dropout=config.number("resid_pdrop", 0.1),
        attention_dropout=config.number("attn_pdrop", 0.1),
        init_std=config.number("initializer_range", 0.02),
    )


def _gpt_neo(config: _Values) -> ModelConfig:
    config.only(activation_function=GELU)
    layers = config.integer("num_layers", REQUIRED)
    kinds = _attention_kinds(config, layers)
    period = next(n for n in range(1, layers + 1) if kinds[n:] == kinds[: layers - n])
    return ModelConfig(
        name=config.path.parent.name,
        num_layers=layers,
        hidden_size=config.integer("hidden_size", REQUIRED),
        num_attention_heads=config.integer("num_heads", REQUIRED),
        ffn_hidden_size=config.integer("intermediate_size"),
        sequence_length=config.integer("max_position_embeddings", REQUIRED),
        vocab_size=config.integer("vocab_size", REQUIRED),
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.flag("tie_word_embeddings", True),
        attention_pattern=tuple(kinds[:period]),
        attention_window=config.integer("window_size", 256),
        hidden_dropout=config.number("resid_dropout", 0.0),
        attention_dropout=config.number("attention_dropout", 0.0),
        init_std=config.number("initializer_range", 0.02),
    )


def _attention_kinds(config: _Values, layers: int) -> list[str]:
    """GPT-Neo's attention of every layer, of patterns and how often each is repeated."""

    def is_pattern(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], list)
            and all(isinstance(kind, str) and kind in KINDS for kind in value[0])
            and type(value[1]) is int
            and 0 <= value[1] * len(value[0]) <= layers <= LAYERS_LIMIT
        )

    patterns = config._get(
        "attention_types",
        REQUIRED,
        lambda value: isinstance(value, list) and len(value) <= LAYERS_LIMIT and all(map(is_pattern, value)),
        f"lists of {' and '.join(KINDS)}, each with a number of times, for {layers} layers",
    )
    kinds = [KINDS[kind] for pattern, times in patterns for kind in pattern * times]
    if len(kinds) != layers:
        raise CheckpointError(f"{config.path}: attention_types gives {len(kinds)} layers, num_layers is {layers}")
    return kinds


def _llama(config: _Values, **own: Any) -> ModelConfig:
    config.only(
        hidden_act=("silu",),
        attention_bias=(False,),
        mlp_bias=(False,),
        rope_scaling=(None,),
        partial_rotary_factor=(1.0, 1),
    )
    heads = config.integer("num_attention_heads", REQUIRED)
    hidden = config.integer("hidden_size", REQUIRED)
    width = config.integer("head_dim", own.pop("head_dim", None)) or hidden // heads
    if width * heads != hidden:
        raise CheckpointError(f"{config.path}: megagpt has no model with head_dim={width}, {heads} heads of {hidden}")
    return ModelConfig(
        name=config.path.parent.name,
        num_layers=config.integer("num_hidden_layers", REQUIRED),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=config.integer("num_key_value_heads", own.pop("query_groups", None)) or heads,
        ffn_hidden_size=config.integer("intermediate_size", REQUIRED),
        sequence_length=config.integer("max_position_embeddings", own.pop("sequence_length", 2048)),
        vocab_size=config.integer("vocab_size", REQUIRED),
        position_embedding="rope",
        rope_base=_rope_base(config),
        normalization="rmsnorm",
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        bias=False,
        tie_embeddings=config.flag("tie_word_embeddings", False),
        attention_dropout=config.number("attention_dropout", 0.0),
        init_std=config.number("initializer_range", 0.02),
        **own,
    )


def _qwen3(config: _Values) -> ModelConfig:
    layers = config.values.get("num_hidden_layers")
    full = ["full_attention"] * layers if type(layers) is int and 0 < layers <= LAYERS_LIMIT else []
    config.only(use_sliding_window=(False,), layer_types=(None, full))
    return _llama(config, qk_layernorm=True, head_dim=128, query_groups=32, sequence_length=32768)


def _rope_base(config: _Values) -> float:
    """The base of the rotary frequencies, as transformers takes it: rope_parameters', else rope_theta, else 10000."""
    theta = config.number("rope_theta", None)
    inner = config.values.get("rope_parameters")
    if inner is None:
        return float(ROPE_THETA if theta is None else theta)
    if not isinstance(inner, dict):
        raise CheckpointError(f"{config.path}: rope_parameters is {shown(inner)}, not an object")
    if unknown := sorted(set(inner) - {"rope_theta", "rope_type", "type", "partial_rotary_factor"}):
        raise CheckpointError(f"{config.path}: megagpt has no model with rope_parameters.{shown(unknown[0])}")
    parameters = _Values(config.path, config.kind, inner)
    parameters.only(rope_type=("default",), type=("default",), partial_rotary_factor=(1.0, 1))
    given = parameters.number("rope_theta", None)
    config.used["rope_parameters"] = parameters.used
    if None not in (given, theta) and given != theta:
        log.warning(
            "%s: rope_theta is %s and rope_parameters.rope_theta is %s; taken is the latter, as transformers does",
            config.path,
            theta,
            given,
        )
    return float(next(value for value in (given, theta, ROPE_THETA) if value is not None))
