"""Phi-3 and Phi-4: Llama with queries, keys and values in one tensor, and with gate and value in one tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megagpt.checkpoint.convert.families import llama, rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import common_window, everywhere, head_dim, shape
from megagpt.checkpoint.convert.families.tensors import Layout, fused_heads, same
from megagpt.checkpoint.convert.families.values import Values
from megagpt.config.architecture import RopeScalingConfig
from megagpt.config.schema import ModelConfig


def _read(config: Values) -> ModelConfig:
    config.integer("original_max_position_embeddings")
    config.only(attention_bias=(False,), mlp_bias=(False,))
    return ModelConfig(
        **shape(config, length=4096),
        **rope.read(config, kinds=("default",), share="partial_rotary_factor"),
        **llama.norms(config, 1e-5),
        **llama.gated(config),
        **everywhere(config.integer("sliding_window")),
        bias=False,
        hidden_dropout=config.number("resid_pdrop", 0.0),
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    plain = replace(model, rope_scaling=RopeScalingConfig())  # the class supports no scaling but longrope
    return (
        llama.written(plain)
        | head_dim(model)
        | {
            "rope_parameters": rope.parameters(plain, partial=True),
            "partial_rotary_factor": model.rotary_fraction,
            "original_max_position_embeddings": model.sequence_length,
            "sliding_window": common_window(model),
            "resid_pdrop": model.hidden_dropout,
            "embd_pdrop": model.hidden_dropout,
        }
    )


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    return llama.tensors(model) | {
        "self_attention.linear_qkv": fused_heads("model.layers.{}.self_attn.qkv_proj"),
        "mlp.linear_fc1": same("model.layers.{}.mlp.gate_up_proj"),
    }


PHI3 = Family(
    "phi3",
    "Phi3ForCausalLM",
    "Phi3Model",
    "Phi-3 and 3.5 with 4k, Phi-4",
    _read,
    _write,
    _tensors,
    limits="longrope (the 128k ones, Phi-4-mini), Phi-3-small, Phi-3.5-MoE",
)
