"""GPT-NeoX: parallel attention and feed-forward layer, each with its norm; rotary positions on a part of each head."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families import rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.layers import shape, write_shape
from megagpt.checkpoint.convert.families.tensors import Layout, same, vocabulary
from megagpt.checkpoint.convert.families.values import PLAIN, Values, name_of
from megagpt.config.schema import ModelConfig

NAMES = {"gelu_fast": "gelu"} | PLAIN


def _read(config: Values) -> ModelConfig:
    has_bias = config.flag("attention_bias", True)
    return ModelConfig(
        **shape(config, grouped=False),
        **rope.read(config, base="rotary_emb_base", share="rotary_pct", fraction=0.25),
        norm_epsilon=config.number("layer_norm_eps", 1e-5),
        parallel_block="two_norms" if config.flag("use_parallel_residual", True) else "none",
        activation=config.choice("hidden_act", NAMES, "gelu"),
        qkv_bias=has_bias,
        attention_output_bias=has_bias,
        hidden_dropout=config.number("hidden_dropout", 0.0),
    )


def _write(model: ModelConfig) -> dict[str, Any]:
    shape = {key: value for key, value in write_shape(model).items() if key != "num_key_value_heads"}
    values = rope.parameters(model, partial=True)
    return (
        shape
        | rope.old_scaling(values)
        | {
            "rope_parameters": values,
            "rotary_emb_base": model.rope_base,
            "rotary_pct": model.rotary_fraction,
            "layer_norm_eps": model.norm_epsilon,
            "use_parallel_residual": model.parallel_block == "two_norms",
            "hidden_act": name_of(model.activation, NAMES),
            "attention_bias": model.has_qkv_bias or model.has_attention_output_bias,
            "hidden_dropout": model.hidden_dropout,
        }
    )


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    """A head's query, key and value rows are adjacent, as in megagpt."""
    layer = "gpt_neox.layers.{}"
    return {
        "embedding.word_embeddings": vocabulary("gpt_neox.embed_in"),
        "output_layer": vocabulary("embed_out"),
        "decoder.final_layernorm": same("gpt_neox.final_layer_norm"),
        "input_layernorm": same(f"{layer}.input_layernorm"),
        "pre_mlp_layernorm": same(f"{layer}.post_attention_layernorm"),
        "self_attention.linear_qkv": same(f"{layer}.attention.query_key_value"),
        "self_attention.linear_proj": same(f"{layer}.attention.dense"),
        "mlp.linear_fc1": same(f"{layer}.mlp.dense_h_to_4h"),
        "mlp.linear_fc2": same(f"{layer}.mlp.dense_4h_to_h"),
    }


GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    "GPTNeoXModel",
    "GPT-NeoX, Pythia, RedPajama, StableLM 1",
    _read,
    _write,
    _tensors,
    head="embed_out",
)
