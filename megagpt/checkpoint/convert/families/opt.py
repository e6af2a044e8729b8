"""OPT: GPT-3's shape with ReLU. Its table of positions begins with two unused rows."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.tensors import Layout, positions, same, separate_heads, vocabulary
from megagpt.checkpoint.convert.families.values import REQUIRED, Values, name_of
from megagpt.checkpoint.files import shown
from megagpt.config.schema import ModelConfig

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_exact"}
"""Activations of the published models; models with others are written as GPT-2."""
OFFSET = 2
"""Number of unused rows at the start of the table of positions."""
EPSILON = 1e-5
"""Epsilon of the norms; transformers' OPT has no key for it."""


def _read(config: Values) -> ModelConfig:
    hidden = config.integer("hidden_size", REQUIRED)
    embedded = config.integer("word_embed_proj_dim", hidden, null=True)
    if not config.flag("do_layer_norm_before", True) or embedded not in (None, hidden):
        raise config.refusal(
            f"do_layer_norm_before={shown(config.values.get('do_layer_norm_before', True))} and word_embed_proj_dim="
            f"{shown(config.values.get('word_embed_proj_dim'))}, as OPT-350m has: the nearest is OPT-125m or OPT-1.3b"
        )
    config.only(_remove_final_layer_norm=(False,), layer_norm_elementwise_affine=(True,))
    return ModelConfig(
        name=config.path.parent.name,
        num_layers=config.layers("num_hidden_layers"),
        hidden_size=hidden,
        num_attention_heads=config.integer("num_attention_heads", REQUIRED),
        ffn_hidden_size=config.integer("ffn_dim", REQUIRED),
        sequence_length=config.integer("max_position_embeddings", 2048),
        vocab_size=config.integer("vocab_size", REQUIRED),
        norm_epsilon=EPSILON,
        activation=config.choice("activation_function", ACTIVATIONS, "relu"),
        bias=config.flag("enable_bias", True),
        tie_embeddings=config.flag("tie_word_embeddings", True),
        hidden_dropout=config.number("dropout", 0.1),
        attention_dropout=config.dropout("attention_dropout"),
        init_std=config.number("init_std", 0.02),
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "word_embed_proj_dim": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "ffn_dim": model.ffn_size,
        "max_position_embeddings": model.sequence_length,
        "activation_function": name_of(model.activation, ACTIVATIONS),
        "enable_bias": model.bias,
        "do_layer_norm_before": True,
        "dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "init_std": model.init_std,
    }


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    layer = "model.decoder.layers.{}"
    return {
        "embedding.word_embeddings": vocabulary("model.decoder.embed_tokens"),
        "embedding.position_embeddings": positions("model.decoder.embed_positions", OFFSET),
        "output_layer": vocabulary("lm_head"),
        "decoder.final_layernorm": same("model.decoder.final_layer_norm"),
        "input_layernorm": same(f"{layer}.self_attn_layer_norm"),
        "pre_mlp_layernorm": same(f"{layer}.final_layer_norm"),
        "self_attention.linear_qkv": separate_heads(f"{layer}.self_attn.{{part}}_proj"),
        "self_attention.linear_proj": same(f"{layer}.self_attn.out_proj"),
        "mlp.linear_fc1": same(f"{layer}.fc1"),
        "mlp.linear_fc2": same(f"{layer}.fc2"),
    }


OPT = Family(
    "opt",
    "OPTForCausalLM",
    "OPTModel",
    "OPT",
    _read,
    _write,
    _tensors,
    limits="OPT-350m (norms after the sublayers, projected embeddings)",
)
