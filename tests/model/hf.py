"""The same weights in transformers' models: from our global parameter names to theirs. Linear, so for gradients too."""

import math

import torch
from torch import Tensor

from megagpt.config.schema import ModelConfig

GPT2 = {
    "embedding.word_embeddings": "transformer.wte",
    "embedding.position_embeddings": "transformer.wpe",
    "decoder.final_layernorm": "transformer.ln_f",
    "input_layernorm": "transformer.h.{}.ln_1",
    "pre_mlp_layernorm": "transformer.h.{}.ln_2",
    "self_attention.linear_proj": "transformer.h.{}.attn.c_proj",
    "mlp.linear_fc1": "transformer.h.{}.mlp.c_fc",
    "mlp.linear_fc2": "transformer.h.{}.mlp.c_proj",
    "self_attention.linear_qkv": "transformer.h.{}.attn.c_attn",
}
GPT_NEO = GPT2 | {
    "self_attention.linear_proj": "transformer.h.{}.attn.attention.out_proj",
    "self_attention.linear_qkv": "transformer.h.{}.attn.attention.{}_proj",
}
LLAMA = {
    "embedding.word_embeddings": "model.embed_tokens",
    "output_layer": "lm_head",
    "decoder.final_layernorm": "model.norm",
    "input_layernorm": "model.layers.{}.input_layernorm",
    "pre_mlp_layernorm": "model.layers.{}.post_attention_layernorm",
    "self_attention.linear_proj": "model.layers.{}.self_attn.o_proj",
    "self_attention.linear_qkv": "model.layers.{}.self_attn.{}_proj",
    "self_attention.q_layernorm": "model.layers.{}.self_attn.q_norm",
    "self_attention.k_layernorm": "model.layers.{}.self_attn.k_norm",
    "mlp.linear_fc1": "model.layers.{}.mlp.{}_proj",
    "mlp.linear_fc2": "model.layers.{}.mlp.down_proj",
}


def gpt2_tensors(ours: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Tensors of GPT2LMHeadModel, whose linears hold the transposed weight and q, k, v side by side."""
    theirs = {}
    for name, tensor, layer, kind in _split_names(ours):
        if name == "self_attention.linear_qkv":
            tensor = torch.cat(_split_qkv(tensor, model))
        in_layer_matrix = layer is not None and tensor.dim() == 2
        theirs[f"{GPT2[name].format(layer)}.{kind}"] = tensor.t() if in_layer_matrix else tensor[: _rows(name, model)]
    return theirs | {"lm_head.weight": theirs["transformer.wte.weight"]}


def gpt_neo_tensors(ours: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Tensors of GPTNeoForCausalLM, which has no bias on q, k, v and does not scale scores: q takes the scale."""
    theirs = {}
    for name, tensor, layer, kind in _split_names(ours):
        if name != "self_attention.linear_qkv":
            theirs[f"{GPT_NEO[name].format(layer)}.{kind}"] = tensor[: _rows(name, model)]
        elif kind == "weight":
            q, k, v = _split_qkv(tensor, model)
            for part, value in (("q", q / math.sqrt(model.head_dim)), ("k", k), ("v", v)):
                theirs[f"{GPT_NEO[name].format(layer, part)}.weight"] = value
    return theirs | {"lm_head.weight": theirs["transformer.wte.weight"]}


def llama_tensors(ours: dict[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Tensors of LlamaForCausalLM, and of Qwen3ForCausalLM when queries and keys are normalised."""
    theirs = {}
    for name, tensor, layer, kind in _split_names(ours):
        parts = {"": tensor[: _rows(name, model)]}
        if name == "self_attention.linear_qkv":
            parts = dict(zip("qkv", _split_qkv(tensor, model), strict=True))
        elif name == "mlp.linear_fc1":
            parts = dict(zip(("gate", "up"), tensor.chunk(2), strict=True))
        theirs |= {f"{LLAMA[name].format(layer, part)}.{kind}": value for part, value in parts.items()}
    return theirs


def _split_names(tensors: dict[str, Tensor]):
    for full_name, tensor in tensors.items():
        name, kind = full_name.rsplit(".", 1)
        layer = None
        if name.startswith("decoder.layers."):
            _, _, layer, name = name.split(".", 3)
        yield name, tensor, layer, kind


def _rows(name: str, model: ModelConfig) -> int | None:
    return model.vocab_size if name in ("embedding.word_embeddings", "output_layer") else None


def _split_qkv(tensor: Tensor, model: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the fused projection, whose rows are, for every group: its queries, its key, its value."""
    per_group = model.num_attention_heads // model.query_groups
    heads = tensor.view(model.query_groups, per_group + 2, model.head_dim, *tensor.shape[1:])
    q, k, v = heads.split((per_group, 1, 1), dim=1)
    return tuple(part.reshape(-1, *tensor.shape[1:]) for part in (q, k, v))
