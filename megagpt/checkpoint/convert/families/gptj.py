"""GPT-J: parallel branches with one norm; rotary positions on neighbouring dimensions; an output bias."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.gpt2 import shape, write_shape
from megagpt.checkpoint.convert.families.tensors import Layout, same, separate_heads, vocabulary
from megagpt.checkpoint.convert.families.values import PLAIN, Values, name_of
from megagpt.config.schema import ModelConfig


def _rotary(model: ModelConfig) -> int:
    return round(model.head_size * model.rotary_fraction)


def _read(config: Values) -> ModelConfig:
    config.only(scale_attn_weights=(True,), rotary=(True,))
    fields = shape(config, length=2048, tied=False, dropout=0.0)
    width = max(1, fields["hidden_size"] // fields["num_attention_heads"])
    turned = config.integer("rotary_dim", 64)
    if turned > width or turned % 2:
        raise config.flaw(f"rotary_dim is {turned}, not an even part of a head of {width}")
    return ModelConfig(
        **fields,
        position_embedding="rope",
        rotary_fraction=turned / width,
        parallel_block="one_norm",
        activation=config.choice("activation_function", PLAIN, "gelu_new"),
        qkv_bias=False,
        attention_output_bias=False,
        output_bias=True,
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    return write_shape(model) | {
        "activation_function": name_of(model.activation, PLAIN),
        "rotary_dim": _rotary(model),
    }


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    layer = "transformer.h.{}"
    return {
        "embedding.word_embeddings": vocabulary("transformer.wte"),
        "output_layer": vocabulary("lm_head"),
        "decoder.final_layernorm": same("transformer.ln_f"),
        "input_layernorm": same(f"{layer}.ln_1"),
        "self_attention.linear_qkv": separate_heads(f"{layer}.attn.{{part}}_proj", interleaved=_rotary),
        "self_attention.linear_proj": same(f"{layer}.attn.out_proj"),
        "mlp.linear_fc1": same(f"{layer}.mlp.fc_in"),
        "mlp.linear_fc2": same(f"{layer}.mlp.fc_out"),
    }


GPTJ = Family("gptj", "GPTJForCausalLM", "GPTJModel", "GPT-J", _read, _write, _tensors)
