"""Falcon: parallel attention and feed-forward layer after one norm (7B) or two norms (40B, 180B), without biases."""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families import rope
from megagpt.checkpoint.convert.families.base import Family
from megagpt.checkpoint.convert.families.tensors import Layout, same, vocabulary
from megagpt.checkpoint.convert.families.values import PLAIN, REQUIRED, Values, name_of
from megagpt.config.schema import ModelConfig

NAMES = {"gelu": "gelu_exact"} | PLAIN


def _read(config: Values) -> ModelConfig:
    if config.flag("alibi", False):
        raise config.refusal("alibi=True, as Falcon-RW has; the nearest is Falcon-7B, which has rotary positions")
    config.only(apply_residual_connection_post_layernorm=(False,))
    hidden = config.integer("hidden_size", None) or config.integer("n_embed", REQUIRED)
    heads = config.integer("num_attention_heads", REQUIRED)
    groups, is_new = (
        config.integer("num_kv_heads", heads, null=True) or heads,
        config.flag("new_decoder_architecture", False),
    )
    parallel, norms = config.flag("parallel_attn", True), config.integer("num_ln_in_parallel_attn", None)
    if norms not in (None, 1, 2) or (is_new and not parallel) or (not is_new and norms == 2):
        raise config.refusal(
            f"parallel_attn={parallel}, num_ln_in_parallel_attn={norms} and new_decoder_architecture={is_new}"
        )
    multi_query = config.flag("multi_query", True)
    if not is_new:
        groups = 1 if multi_query else heads
    return ModelConfig(
        name=config.path.parent.name,
        num_layers=config.layers("num_hidden_layers"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=config.integer("ffn_hidden_size", 4 * hidden, null=True) or 4 * hidden,
        sequence_length=config.integer("max_position_embeddings", 2048),
        vocab_size=config.integer("vocab_size", REQUIRED),
        **rope.read(config),
        norm_epsilon=config.number("layer_norm_epsilon", 1e-5),
        parallel_block=_block(is_new, parallel, norms),
        activation=config.choice("activation", NAMES, "gelu"),
        bias=config.flag("bias", False),
        tie_embeddings=config.flag("tie_word_embeddings", True),
        hidden_dropout=config.number("hidden_dropout", 0.0),
        attention_dropout=config.dropout("attention_dropout"),
        init_std=config.number("initializer_range", 0.02),
    )


def _block(is_new: bool, parallel: bool, norms: int | None) -> str:
    """The value of `parallel_block`."""
    if not parallel:
        return "none"
    return "two_norms" if is_new and norms != 1 else "one_norm"


def _needs_new(model: ModelConfig) -> bool:
    """Whether the model needs Falcon-40B's decoder. The older one has one norm, and one group or as many as heads."""
    return model.parallel_block == "two_norms" or model.query_groups not in (1, model.num_attention_heads)


def _write(model: ModelConfig) -> dict[str, Any]:
    is_new = _needs_new(model)
    norms = {"num_ln_in_parallel_attn": 2 if model.parallel_block == "two_norms" else 1} if is_new else {}
    return (
        rope.write(model)
        | norms
        | {
            "num_hidden_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "num_attention_heads": model.num_attention_heads,
            "num_kv_heads": model.query_groups if is_new else model.num_attention_heads,
            "ffn_hidden_size": model.ffn_size,
            "max_position_embeddings": model.sequence_length,
            "layer_norm_epsilon": model.norm_epsilon,
            "new_decoder_architecture": is_new,
            "multi_query": is_new or model.query_groups == 1,
            "parallel_attn": model.parallel_block != "none",
            "activation": name_of(model.activation, NAMES),
            "bias": model.bias,
            "alibi": False,
            "hidden_dropout": model.hidden_dropout,
            "attention_dropout": model.attention_dropout,
        }
    )


def _tensors(model: ModelConfig) -> Mapping[str, Layout]:
    """Queries, keys and values of a group are together, as in megagpt."""
    layer = "transformer.h.{}"
    two = model.parallel_block == "two_norms"
    return {
        "embedding.word_embeddings": vocabulary("transformer.word_embeddings"),
        "output_layer": vocabulary("lm_head"),
        "decoder.final_layernorm": same("transformer.ln_f"),
        "input_layernorm": same(f"{layer}.ln_attn" if two else f"{layer}.input_layernorm"),
        "pre_mlp_layernorm": same(f"{layer}.ln_mlp" if two else f"{layer}.post_attention_layernorm"),
        "self_attention.linear_qkv": same(f"{layer}.self_attention.query_key_value"),
        "self_attention.linear_proj": same(f"{layer}.self_attention.dense"),
        "mlp.linear_fc1": same(f"{layer}.mlp.dense_h_to_4h"),
        "mlp.linear_fc2": same(f"{layer}.mlp.dense_4h_to_h"),
    }


FALCON = Family(
    "falcon",
    "FalconForCausalLM",
    "FalconModel",
    "Falcon 7B, 40B, 180B, Falcon 2 11B",
    _read,
    _write,
    _tensors,
    limits="Falcon-RW (ALiBi), Falcon-Mamba, Falcon-H1",
)
