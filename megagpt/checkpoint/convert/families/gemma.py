"""Gemma 2 and 3 (text): norms of 1 + weight around every sublayer, scaled embeddings, windows on most layers."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families import llama, rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import by_layer, layer_types, shape, write_shape
from megagpt.checkpoint.convert.families.tensors import Layout, same
from megagpt.checkpoint.convert.families.values import GATED, Values, name_of
from megagpt.checkpoint.files import shown
from megagpt.config.architecture import RopeScalingConfig
from megagpt.config.schema import ModelConfig

LENGTH = 131072
"""Gemma 3's context length, where none is given."""
LOCAL_BASE, GLOBAL_BASE = 10000.0, 1000000.0
"""Gemma 3's bases of the rotary frequencies for layers with a window and for other layers."""


def _common(config: Values, length: int, period: int) -> dict[str, Any]:
    """Fields that Gemma 2 and 3 share. Every `period`-th layer has no window."""
    config.only(use_bidirectional_attention=(None, False))
    fields = shape(config, groups=4, head_dim=256, length=length, tied=True)
    layers, width = fields["num_layers"], fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
    scalar = config.integer("query_pre_attn_scalar", 256)
    window = config.integer("sliding_window", 4096, null=True)
    return {
        **fields,
        **llama.norms(config),
        **llama.attention_biases(config),
        **by_layer(config, layers, window, [(layer + 1) % period != 0 for layer in range(layers)]),
        "activation": config.choice("hidden_activation", GATED, "gelu_pytorch_tanh"),
        "norm_placement": "both",
        "zero_centered_norm": True,
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "attention_scale": None if scalar == width else scalar**-0.5,
        "logit_softcap": config.number("final_logit_softcapping", 30.0 if config.kind == "gemma2" else None, null=True),
    }


def _write_common(model: ModelConfig) -> dict[str, Any]:
    scale = model.attention_scale or model.head_size**-0.5
    return write_shape(model) | {
        "head_dim": model.head_size,
        "rms_norm_eps": model.norm_epsilon,
        "hidden_activation": name_of(model.activation, GATED),
        "attention_bias": model.has_qkv_bias or model.has_attention_output_bias,
        "query_pre_attn_scalar": max(1, round(scale**-2)),
        "sliding_window": model.attention_window,
        "layer_types": layer_types(model),
        "final_logit_softcapping": model.logit_softcap,
    }


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    layer = "model.layers.{}"
    return llama.tensors(model) | {
        "post_attention_layernorm": same(f"{layer}.post_attention_layernorm"),
        "pre_mlp_layernorm": same(f"{layer}.pre_feedforward_layernorm"),
        "post_mlp_layernorm": same(f"{layer}.post_feedforward_layernorm"),
    }


def _read_gemma2(config: Values) -> ModelConfig:
    return ModelConfig(
        **_common(config, 8192, 2),
        **rope.read(config),
        attention_softcap=config.number("attn_logit_softcapping", 50.0, null=True),
    )


def _write_gemma2(model: ModelConfig) -> dict[str, Any]:
    return _write_common(model) | rope.write(model) | {"attn_logit_softcapping": model.attention_softcap}


def _read_gemma3(config: Values) -> ModelConfig:
    """Gemma 3's model. transformers ignores its softcap of attention, so a config with one is refused."""
    config.only(attn_logit_softcapping=(None,))
    period = config.integer("sliding_window_pattern", 6)
    fields = _common(config, LENGTH, period) | _bases(config)
    if "attention_pattern" not in fields:
        del fields["rope_local_base"]  # no layer uses it
    return ModelConfig(**fields, qk_layernorm=True)


def _bases(config: Values) -> dict[str, Any]:
    """Rotary positions of both kinds of layers. New configs have one object per kind, old ones one key per base."""
    both = config.object("rope_parameters") or {}
    if unknown := sorted(set(both) - {"full_attention", "sliding_attention"}):
        raise config.refusal(f"rope_parameters.{shown(unknown[0])} beside full_attention and sliding_attention")
    base, local_base = config.number("rope_theta", None), config.number("rope_local_base_freq", None)
    inner = Values(config.path, config.kind, both)
    full = dict(inner.object("full_attention") or {}) | (config.object("rope_scaling") or {})
    local = dict(inner.object("sliding_attention") or {})
    full.setdefault("rope_theta", GLOBAL_BASE if base is None else base)
    local.setdefault("rope_theta", LOCAL_BASE if local_base is None else local_base)
    length = {"max_position_embeddings": config.integer("max_position_embeddings", LENGTH)}
    sides = [Values(config.path, config.kind, length | {"rope_parameters": values}) for values in (full, local)]
    found, beside = rope.read(sides[0]), rope.read(sides[1])
    if beside["rope_scaling"] != RopeScalingConfig():
        raise config.refusal("scaled rotary positions in layers with a window (rope_parameters.sliding_attention)")
    config.used["rope_parameters"] = {
        "full_attention": sides[0].used["rope_parameters"],
        "sliding_attention": sides[1].used["rope_parameters"],
    }
    return found | {"rope_local_base": beside["rope_base"]}


def _write_gemma3(model: ModelConfig) -> dict[str, Any]:
    full, local = rope.parameters(model), model.rope_local_base or model.rope_base
    return (
        _write_common(model)
        | rope.old_scaling(full)
        | {
            "rope_theta": model.rope_base,
            "rope_local_base_freq": local,
            "rope_parameters": {
                "full_attention": full,
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            },
        }
    )


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", "Gemma2Model", "Gemma 2", _read_gemma2, _write_gemma2, _tensors)
GEMMA3 = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    "Gemma3TextModel",
    "Gemma 3, text alone",
    _read_gemma3,
    _write_gemma3,
    _tensors,
    limits="folders with a vision tower (gemma3), Gemma 3n",
)
