"""Llama and Mistral: rotary positions, RMSNorm before each sublayer, a gated activation. Others build on them."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families import rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import common_window, everywhere, shape, write_shape
from megagpt.checkpoint.convert.families.tensors import Layout, gate_and_up, same, separate_heads, vocabulary
from megagpt.checkpoint.convert.families.values import GATED, Values, name_of
from megagpt.config.schema import ModelConfig


def norms(config: Values, epsilon: float = 1e-6) -> dict[str, Any]:
    """Fields for RMSNorm. epsilon: the family's default."""
    return {"normalization": "rmsnorm", "norm_epsilon": config.number("rms_norm_eps", epsilon)}


def gated(config: Values) -> dict[str, Any]:
    """The field for a gated activation."""
    return {"activation": config.choice("hidden_act", GATED, "silu")}


def attention_biases(config: Values) -> dict[str, Any]:
    """Fields for families in which one flag sets all biases of attention, and nothing else has a bias."""
    has_bias = config.flag("attention_bias", False)
    return {"bias": False, "qkv_bias": has_bias, "attention_output_bias": has_bias}


def written(model: ModelConfig) -> dict[str, Any]:
    """The keys that all families with RMSNorm, rotary positions and `hidden_act` share."""
    return (
        write_shape(model)
        | rope.write(model)
        | {
            "rms_norm_eps": model.norm_epsilon,
            "hidden_act": name_of(model.activation, GATED),
        }
    )


def tensors(model: ModelConfig) -> Mapping[str, Layout]:
    """Llama's tensors, and the norms of queries and keys that other families add."""
    layer = "model.layers.{}"
    return {
        "embedding.word_embeddings": vocabulary("model.embed_tokens"),
        "output_layer": vocabulary("lm_head"),
        "decoder.final_layernorm": same("model.norm"),
        "input_layernorm": same(f"{layer}.input_layernorm"),
        "pre_mlp_layernorm": same(f"{layer}.post_attention_layernorm"),
        "self_attention.linear_qkv": separate_heads(f"{layer}.self_attn.{{part}}_proj"),
        "self_attention.linear_proj": same(f"{layer}.self_attn.o_proj"),
        "self_attention.q_layernorm": same(f"{layer}.self_attn.q_norm"),
        "self_attention.k_layernorm": same(f"{layer}.self_attn.k_norm"),
        "mlp.linear_fc1": gate_and_up(f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"),
        "mlp.linear_fc2": same(f"{layer}.mlp.down_proj"),
    }


def _read_llama(config: Values) -> ModelConfig:
    return ModelConfig(
        **shape(config),
        **rope.read(config),
        **norms(config),
        **gated(config),
        **attention_biases(config) | {"bias": config.flag("mlp_bias", False)},
    )


def _write_llama(model: ModelConfig) -> dict[str, Any]:
    return written(model) | {
        "head_dim": model.head_size,
        "attention_bias": model.has_qkv_bias or model.has_attention_output_bias,
        "mlp_bias": model.bias,
    }


def _read_mistral(config: Values) -> ModelConfig:
    return ModelConfig(
        **shape(config, groups=8, length=131072),
        **rope.read(config),
        **norms(config),
        **gated(config),
        **everywhere(config.integer("sliding_window", 4096, null=True)),
        bias=False,
    )


def _write_mistral(model: ModelConfig) -> dict[str, Any]:
    return written(model) | {"head_dim": model.head_size, "sliding_window": common_window(model)}


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "LlamaModel",
    "Llama 1 to 3.3, SmolLM 1 and 2, Falcon 3, Yi",
    _read_llama,
    _write_llama,
    tensors,
    limits="vision models (mllama), Llama 4",
)
MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    "MistralModel",
    "Mistral 7B, Nemo, Small, Large",
    _read_mistral,
    _write_mistral,
    tensors,
    limits="Mixtral, vision models (mistral3)",
)
