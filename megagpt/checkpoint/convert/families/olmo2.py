"""OLMo 2: norms on the sublayers' outputs, and norms of queries and keys over all heads together."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families import llama, rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import head_dim, shape
from megagpt.checkpoint.convert.families.tensors import Layout, same
from megagpt.checkpoint.convert.families.values import Values
from megagpt.config.schema import ModelConfig


def _read(config: Values) -> ModelConfig:
    return ModelConfig(
        **shape(config),
        **rope.read(config),
        **llama.norms(config, 1e-5),
        **llama.gated(config),
        **llama.attention_biases(config),
        norm_placement="post",
        qk_layernorm=True,
        qk_norm_scope="all_heads",
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return (
        llama.written(model)
        | head_dim(model)
        | {"attention_bias": model.has_qkv_bias or model.has_attention_output_bias}
    )


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    layer = "model.layers.{}"
    return llama.tensors(model) | {
        "post_attention_layernorm": same(f"{layer}.post_attention_layernorm"),
        "post_mlp_layernorm": same(f"{layer}.post_feedforward_layernorm"),
    }


OLMO2 = Family(
    "olmo2", "Olmo2ForCausalLM", "Olmo2Model", "OLMo 2", _read, _write, _tensors, limits="OLMo 1, OLMoE, OLMo 3"
)
