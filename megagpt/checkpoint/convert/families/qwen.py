"""Qwen2, Qwen2.5 and Qwen3: Llama with biases of queries, keys and values, or with norms of queries and keys."""

from itertools import takewhile
from typing import Any

from megagpt.checkpoint.convert.families import rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import by_layer, head_dim, layer_types, shape
from megagpt.checkpoint.convert.families.llama import attention_biases, gated, norms, tensors, written
from megagpt.checkpoint.convert.families.values import Values
from megagpt.config.schema import ModelConfig


def _windows(config: Values, layers: int) -> dict[str, Any]:
    """Fields for windows: only with use_sliding_window, on layers from max_window_layers on or as layer_types says."""
    window = config.integer("sliding_window", 4096, null=True) if config.flag("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28, lambda value: type(value) is int and value >= 0, "a number of layers")
    return by_layer(config, layers, window, [window is not None and layer >= first for layer in range(layers)])


def _write_windows(model: ModelConfig) -> dict[str, Any]:
    kinds = layer_types(model)
    if "sliding_attention" not in kinds:
        return {"use_sliding_window": False, "layer_types": kinds}
    dense = len(list(takewhile(lambda kind: kind == "full_attention", kinds)))
    return {
        "use_sliding_window": True,
        "sliding_window": model.attention_window,
        "max_window_layers": dense,
        "layer_types": kinds,
    }


def _read_qwen2(config: Values) -> ModelConfig:
    fields = shape(config, groups=32, length=32768)
    return ModelConfig(
        **fields,
        **rope.read(config),
        **norms(config),
        **gated(config),
        **_windows(config, fields["num_layers"]),
        bias=False,
        qkv_bias=True,
    )


def _write_qwen2(model: ModelConfig) -> dict[str, Any]:
    return written(model) | _write_windows(model) | head_dim(model)


def _read_qwen3(config: Values) -> ModelConfig:
    fields = shape(config, groups=32, head_dim=128, length=32768)
    return ModelConfig(
        **fields,
        **rope.read(config),
        **norms(config),
        **gated(config),
        **attention_biases(config),
        **_windows(config, fields["num_layers"]),
        qk_layernorm=True,
    )


def _write_qwen3(model: ModelConfig) -> dict[str, Any]:
    return (
        written(model)
        | _write_windows(model)
        | {
            "head_dim": model.head_size,
            "attention_bias": model.has_qkv_bias or model.has_attention_output_bias,
        }
    )


QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    "Qwen2Model",
    "Qwen2, Qwen2.5, QwQ",
    _read_qwen2,
    _write_qwen2,
    tensors,
    limits="Qwen1.5-MoE, Qwen2-57B (qwen2_moe), Qwen2-VL",
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    "Qwen3Model",
    "Qwen3",
    _read_qwen3,
    _write_qwen3,
    tensors,
    limits="Qwen3-30B-A3B, 235B-A22B (qwen3_moe), Qwen3-Next",
)
