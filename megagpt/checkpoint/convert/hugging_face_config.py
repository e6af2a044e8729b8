"""Converts a model's settings to and from transformers' config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megagpt.checkpoint.files import parse_json, read_bytes
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

CONFIG_LIMIT = 1 << 20
KINDS = {"global": "dense", "local": "banded"}
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
"""transformers' names of GELU's tanh approximation."""


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
        "head_dim": model.head_dim,
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


def read(path: Path) -> tuple[str, ModelConfig]:
    """The class and the model of a config.json. Raises CheckpointError naming what megagpt does not have."""
    values = parse_json(read_bytes(path, CONFIG_LIMIT), path)
    readers = {"gpt2": _gpt2, "gpt_neo": _gpt_neo, "llama": _llama, "qwen3": _llama}
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in readers:
        raise CheckpointError(f"{path} is of model_type {kind!r:.100}; known are {', '.join(readers)}")
    try:
        architecture, model = readers[kind](values, path)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} is not a complete config of {kind}: {error!r:.300}") from None
    if model.hidden_size % model.num_attention_heads:
        raise CheckpointError(f"{path}: {model.num_attention_heads} heads do not divide {model.hidden_size}")
    return architecture, model


def _refuse(path: Path, values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises CheckpointError for a key with a value that megagpt's models do not have."""
    for key, good in allowed.items():
        if key in values and values[key] not in good:
            raise CheckpointError(f"{path}: megagpt has no model with {key}={values[key]!r:.100}")


def _gpt2(values: dict[str, Any], path: Path) -> tuple[str, ModelConfig]:
    _refuse(
        path,
        values,
        {
            "activation_function": GELU,
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    )
    return "GPT2LMHeadModel", ModelConfig(
        name=path.parent.name,
        num_layers=int(values["n_layer"]),
        hidden_size=int(values["n_embd"]),
        num_attention_heads=int(values["n_head"]),
        ffn_hidden_size=values.get("n_inner"),
        sequence_length=int(values.get("n_positions", 1024)),
        vocab_size=int(values["vocab_size"]),
        norm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
        tie_embeddings=bool(values.get("tie_word_embeddings", True)),
        hidden_dropout=float(values.get("resid_pdrop", 0.1)),
        attention_dropout=float(values.get("attn_pdrop", 0.1)),
        init_std=float(values.get("initializer_range", 0.02)),
    )


def _gpt_neo(values: dict[str, Any], path: Path) -> tuple[str, ModelConfig]:
    _refuse(path, values, {"activation_function": GELU})
    kinds = [KINDS[kind] for pattern, times in values["attention_types"] for kind in pattern * int(times)]
    layers = int(values["num_layers"])
    if len(kinds) != layers:
        raise CheckpointError(f"{path}: attention_types gives {len(kinds)} layers, num_layers is {layers}")
    period = next(n for n in range(1, layers + 1) if all(kinds[i] == kinds[i % n] for i in range(layers)))
    return "GPTNeoForCausalLM", ModelConfig(
        name=path.parent.name,
        num_layers=layers,
        hidden_size=int(values["hidden_size"]),
        num_attention_heads=int(values["num_heads"]),
        ffn_hidden_size=values.get("intermediate_size"),
        sequence_length=int(values["max_position_embeddings"]),
        vocab_size=int(values["vocab_size"]),
        norm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
        tie_embeddings=bool(values.get("tie_word_embeddings", True)),
        attention_pattern=tuple(kinds[:period]),
        attention_window=int(values.get("window_size", 256)),
        hidden_dropout=float(values.get("resid_dropout", 0.0)),
        attention_dropout=float(values.get("attention_dropout", 0.0)),
        init_std=float(values.get("initializer_range", 0.02)),
    )


def _llama(values: dict[str, Any], path: Path) -> tuple[str, ModelConfig]:
    rope = values.get("rope_parameters") or {}
    _refuse(
        path,
        values | {f"rope_parameters.{key}": value for key, value in rope.items()},
        {
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_scaling": (None,),
            "rope_parameters.rope_type": ("default",),
            "use_sliding_window": (False,),
        },
    )
    heads, hidden = int(values["num_attention_heads"]), int(values["hidden_size"])
    _refuse(path, values, {"head_dim": (None, hidden // heads)})
    qwen = values["model_type"] == "qwen3"
    return "Qwen3ForCausalLM" if qwen else "LlamaForCausalLM", ModelConfig(
        name=path.parent.name,
        num_layers=int(values["num_hidden_layers"]),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=int(values.get("num_key_value_heads") or heads),
        ffn_hidden_size=int(values["intermediate_size"]),
        sequence_length=int(values.get("max_position_embeddings", 2048)),
        vocab_size=int(values["vocab_size"]),
        position_embedding="rope",
        rope_base=float(values.get("rope_theta") or rope["rope_theta"]),
        normalization="rmsnorm",
        norm_epsilon=float(values.get("rms_norm_eps", 1e-6)),
        activation="swiglu",
        bias=False,
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        qk_layernorm=qwen,
        attention_dropout=float(values.get("attention_dropout", 0.0)),
        init_std=float(values.get("initializer_range", 0.02)),
    )
