"""GPT-2, GPT-Neo (windows on some layers) and BigCode (one key and value head): learned positions, LayerNorm."""

import math
from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.common import LAYERS_LIMIT
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import pattern
from megagpt.checkpoint.convert.families.tensors import (
    Layout,
    fused_heads,
    same,
    separate_heads,
    transposed,
    vocabulary,
)
from megagpt.checkpoint.convert.families.values import PLAIN, REQUIRED, Values, name_of
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

KINDS = {"global": "dense", "local": "banded"}


def shape(config: Values, length: int = 1024, tied: bool = True, dropout: float = 0.1) -> dict[str, Any]:
    """Fields of `ModelConfig` from keys with GPT-2's names. The arguments are the family's defaults."""
    return {
        "name": config.path.parent.name,
        "num_layers": config.layers("n_layer"),
        "hidden_size": config.integer("n_embd", REQUIRED),
        "num_attention_heads": config.integer("n_head", REQUIRED),
        "ffn_hidden_size": config.integer("n_inner"),
        "sequence_length": config.integer("n_positions", length),
        "vocab_size": config.integer("vocab_size", REQUIRED),
        "norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": config.flag("tie_word_embeddings", tied),
        "hidden_dropout": config.number("resid_pdrop", dropout),
        "attention_dropout": config.number("attn_pdrop", dropout),
        "init_std": config.number("initializer_range", 0.02),
    }


def write_shape(model: ModelConfig) -> dict[str, Any]:
    """The keys that `shape` reads, except the keys of all families."""
    return {
        "n_layer": model.num_layers,
        "n_embd": model.hidden_size,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn_size,
        "n_positions": model.sequence_length,
        "layer_norm_epsilon": model.norm_epsilon,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
    }


def _read_gpt2(config: Values) -> ModelConfig:
    config.only(scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,))
    return ModelConfig(**shape(config), activation=config.choice("activation_function", PLAIN, "gelu_new"))


def _write_gpt2(model: ModelConfig) -> dict[str, Any]:
    return write_shape(model) | {"activation_function": name_of(model.activation, PLAIN)}


def _gpt2_tensors(model: ModelConfig) -> Mapping[str, Layout]:
    layer = "transformer.h.{}"
    return {
        "embedding.word_embeddings": vocabulary("transformer.wte"),
        "embedding.position_embeddings": same("transformer.wpe"),
        "output_layer": vocabulary("lm_head"),
        "decoder.final_layernorm": same("transformer.ln_f"),
        "input_layernorm": same(f"{layer}.ln_1"),
        "pre_mlp_layernorm": same(f"{layer}.ln_2"),
        "self_attention.linear_qkv": fused_heads(f"{layer}.attn.c_attn", conv1d=True),
        "self_attention.linear_proj": transposed(f"{layer}.attn.c_proj"),
        "mlp.linear_fc1": transposed(f"{layer}.mlp.c_fc"),
        "mlp.linear_fc2": transposed(f"{layer}.mlp.c_proj"),
    }


def _read_bigcode(config: Values) -> ModelConfig:
    config.only(scale_attn_weights=(True,), add_cross_attention=(False,))
    return ModelConfig(
        **shape(config),
        activation=config.choice("activation_function", PLAIN, "gelu_pytorch_tanh"),
        num_query_groups=1 if config.flag("multi_query", True) else None,
    )


def _write_bigcode(model: ModelConfig) -> dict[str, Any]:
    names = {"gelu_pytorch_tanh": "gelu"} | PLAIN
    return write_shape(model) | {
        "activation_function": name_of(model.activation, names),
        "multi_query": model.query_groups == 1,
    }


def _bigcode_tensors(model: ModelConfig) -> Mapping[str, Layout]:
    """GPT-2's names without transposition. Without multi_query, a head's query, key and value rows are adjacent."""
    layer = "transformer.h.{}"
    heads = fused_heads if model.query_groups == 1 else same
    return _gpt2_tensors(model) | {
        "self_attention.linear_qkv": heads(f"{layer}.attn.c_attn"),
        "self_attention.linear_proj": same(f"{layer}.attn.c_proj"),
        "mlp.linear_fc1": same(f"{layer}.mlp.c_fc"),
        "mlp.linear_fc2": same(f"{layer}.mlp.c_proj"),
    }


def _read_gpt_neo(config: Values) -> ModelConfig:
    layers = config.layers("num_layers")
    return ModelConfig(
        name=config.path.parent.name,
        num_layers=layers,
        hidden_size=config.integer("hidden_size", REQUIRED),
        num_attention_heads=config.integer("num_heads", REQUIRED),
        ffn_hidden_size=config.integer("intermediate_size"),
        sequence_length=config.integer("max_position_embeddings", REQUIRED),
        vocab_size=config.integer("vocab_size", REQUIRED),
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=config.choice("activation_function", PLAIN, "gelu_new"),
        tie_embeddings=config.flag("tie_word_embeddings", True),
        attention_pattern=pattern(_attention_kinds(config, layers)),
        attention_window=config.integer("window_size", 256),
        hidden_dropout=config.number("resid_dropout", 0.0),
        attention_dropout=config.dropout("attention_dropout"),
        init_std=config.number("initializer_range", 0.02),
    )


def _attention_kinds(config: Values, layers: int) -> list[str]:
    """The kind of attention of every layer, from GPT-Neo's list of (pattern, number of repetitions)."""

    def is_pattern(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], list)
            and all(isinstance(kind, str) and kind in KINDS for kind in value[0])
            and type(value[1]) is int
            and 0 <= value[1] * len(value[0]) <= layers <= LAYERS_LIMIT
        )

    patterns = config.get(
        "attention_types",
        REQUIRED,
        lambda value: isinstance(value, list) and len(value) <= LAYERS_LIMIT and all(map(is_pattern, value)),
        f"lists of {' and '.join(KINDS)}, each with a number of times, for {layers} layers",
    )
    kinds = [KINDS[kind] for one, times in patterns for kind in one * times]
    if len(kinds) != layers:
        raise CheckpointError(f"{config.path}: attention_types gives {len(kinds)} layers, num_layers is {layers}")
    return kinds


def _write_gpt_neo(model: ModelConfig) -> dict[str, Any]:
    kinds = ["global" if model.window(layer) is None else "local" for layer in range(model.num_layers)]
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_heads": model.num_attention_heads,
        "intermediate_size": model.ffn_size,
        "max_position_embeddings": model.sequence_length,
        "activation_function": name_of(model.activation, PLAIN),
        "layer_norm_epsilon": model.norm_epsilon,
        "attention_types": [[[kind], 1] for kind in kinds],
        "window_size": model.attention_window,
        "resid_dropout": model.hidden_dropout,
        "embed_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
    }


def _gpt_neo_tensors(model: ModelConfig) -> Mapping[str, Layout]:
    """GPT-Neo does not scale scores, so its queries include the scale, exactly if a head's width is a power of 4."""
    layer = "transformer.h.{}"
    return _gpt2_tensors(model) | {
        "self_attention.linear_qkv": separate_heads(
            f"{layer}.attn.attention.{{part}}_proj", has_bias=False, query_scale=lambda m: 1 / math.sqrt(m.head_size)
        ),
        "self_attention.linear_proj": same(f"{layer}.attn.attention.out_proj"),
        "mlp.linear_fc1": same(f"{layer}.mlp.c_fc"),
        "mlp.linear_fc2": same(f"{layer}.mlp.c_proj"),
    }


GPT2 = Family("gpt2", "GPT2LMHeadModel", "GPT2Model", "GPT-2, Cerebras-GPT", _read_gpt2, _write_gpt2, _gpt2_tensors)
GPT_NEO = Family(
    "gpt_neo", "GPTNeoForCausalLM", "GPTNeoModel", "GPT-Neo", _read_gpt_neo, _write_gpt_neo, _gpt_neo_tensors
)
BIGCODE = Family(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    "GPTBigCodeModel",
    "StarCoder, SantaCoder",
    _read_bigcode,
    _write_bigcode,
    _bigcode_tensors,
)
