"""StarCoder2: GPT-3's layers with rotary positions, grouped queries and a window."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families import llama, rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import common_window, everywhere, head_dim, shape, write_shape
from megagpt.checkpoint.convert.families.tensors import Layout, same
from megagpt.checkpoint.convert.families.values import PLAIN, Values, name_of
from megagpt.config.schema import ModelConfig

NAMES = {"gelu_pytorch_tanh": "gelu"} | PLAIN


def _read(config: Values) -> ModelConfig:
    config.only(norm_type=("layer_norm",), mlp_type=("default",))
    fields = shape(config, groups=2, length=4096, tied=True)
    return ModelConfig(
        **fields | {"init_std": config.number("initializer_range", 0.018042)},
        **rope.read(config),
        **everywhere(config.integer("sliding_window")),
        norm_epsilon=config.number("norm_epsilon", 1e-5),
        activation=config.choice("hidden_act", NAMES, "gelu_pytorch_tanh"),
        bias=config.flag("use_bias", True),
        hidden_dropout=config.number("residual_dropout", 0.0),
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return (
        write_shape(model)
        | rope.write(model)
        | head_dim(model)
        | {
            "norm_epsilon": model.norm_epsilon,
            "hidden_act": name_of(model.activation, NAMES),
            "use_bias": model.bias,
            "sliding_window": common_window(model),
            "residual_dropout": model.hidden_dropout,
            "embedding_dropout": model.hidden_dropout,
        }
    )


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    return llama.tensors(model) | {
        "mlp.linear_fc1": same("model.layers.{}.mlp.c_fc"),
        "mlp.linear_fc2": same("model.layers.{}.mlp.c_proj"),
    }


STARCODER2 = Family("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Model", "StarCoder2", _read, _write, _tensors)
