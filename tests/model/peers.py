"""Tiny models of transformers whose architectures have our options, and our weights by their names.

The mapping is linear, so it holds for gradients too. It is written down here once more, apart from the converter's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import Tensor

from megagpt.config.architecture import ModelConfig, RopeScalingConfig

LLAMA = ModelConfig(
    num_layers=3,
    hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    sequence_length=64,
    vocab_size=301,
    position_embedding="rope",
    rope_base=5000.0,
    normalization="rmsnorm",
    activation="swiglu",
    bias=False,
    tie_embeddings=False,
)
GPT = replace(LLAMA, normalization="layernorm", activation="gelu", bias=True, num_query_groups=None)


@dataclass(frozen=True)
class Peer:
    """A model of transformers, and what ours is called there."""

    model: ModelConfig
    kind: str
    """Class of the model; its configuration's is `settings_kind`, or the same with Config at its end."""
    settings: dict[str, Any]
    names: dict[str, str]
    """Our modules -> theirs; {} stands for the layer's number, a list after | for what a tensor is cut into."""
    settings_kind: str = ""
    change: Callable[[Tensor, ModelConfig], Tensor] = field(default=lambda tensor, model: tensor)
    """Of the rows of one head of queries or keys, [heads, D, ...]."""

    def build(self) -> transformers.PreTrainedModel:
        """The model, with attention as a textbook has it, in which every option works."""
        kind = self.settings_kind or self.kind.replace("ForCausalLM", "Config")
        sizes = {"vocab_size": self.model.vocab_size, "attn_implementation": "eager"}
        return getattr(transformers, self.kind)(getattr(transformers, kind)(**sizes | self.settings))

    def tensors(self, ours: dict[str, Tensor]) -> dict[str, Tensor]:
        """Our whole tensors, weights or gradients, by their names."""
        found = {}
        for name, tensor in ours.items():
            module, _, kind = name.rpartition(".")
            number = re.search(r"layers\.(\d+)", module)
            target, _, cut = self.names[re.sub(r"layers\.\d+\.", "", module)].partition("|")
            target = target.format(number[1] if number else "")
            if tensor.shape[0] == self.model.padded_vocab_size:
                tensor = tensor[: self.model.vocab_size]
            if cut == "qkv":
                found |= {f"{target}{part}.{kind}": rows for part, rows in self._projections(tensor).items()}
            elif cut == "qkv_one":
                found[f"{target}.{kind}"] = torch.cat(list(self._projections(tensor).values()))
            elif cut:
                found |= {f"{target}{p}.{kind}": rows for p, rows in zip(cut.split(), tensor.chunk(2), strict=True)}
            else:
                found[f"{target}.{kind}"] = tensor
        return found

    def _projections(self, tensor: Tensor) -> dict[str, Tensor]:
        groups = tensor.view(self.model.query_groups, -1, self.model.head_size, *tensor.shape[1:])
        parts = {"q": groups[:, :-2].flatten(0, 1), "k": groups[:, -2], "v": groups[:, -1]}
        return {
            f"{part}_proj": (rows if part == "v" else self.change(rows, self.model)).flatten(0, 1)
            for part, rows in parts.items()
        }


def llama_settings(model: ModelConfig, **more: Any) -> dict[str, Any]:
    """Settings that Llama and its many descendants have."""
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "max_position_embeddings": model.sequence_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        "pad_token_id": None,
    } | more


LLAMA_NAMES = {
    "embedding.word_embeddings": "model.embed_tokens",
    "decoder.input_layernorm": "model.layers.{}.input_layernorm",
    "decoder.pre_mlp_layernorm": "model.layers.{}.post_attention_layernorm",
    "decoder.self_attention.linear_qkv": "model.layers.{}.self_attn.|qkv",
    "decoder.self_attention.q_layernorm": "model.layers.{}.self_attn.q_norm",
    "decoder.self_attention.k_layernorm": "model.layers.{}.self_attn.k_norm",
    "decoder.self_attention.linear_proj": "model.layers.{}.self_attn.o_proj",
    "decoder.mlp.linear_fc1": "model.layers.{}.mlp.|gate_proj up_proj",
    "decoder.mlp.linear_fc2": "model.layers.{}.mlp.down_proj",
    "decoder.final_layernorm": "model.norm",
    "output_layer": "lm_head",
}
PLAIN_MLP = {"decoder.mlp.linear_fc1": "model.layers.{}.mlp.up_proj"}


def gpt_names(base: str, layers: str, **parts: str) -> dict[str, str]:
    """Names of a model that is not like Llama: modules of a layer by our names."""
    of_layer = {
        "input_layernorm": "decoder.input_layernorm",
        "pre_mlp_layernorm": "decoder.pre_mlp_layernorm",
        "qkv": "decoder.self_attention.linear_qkv",
        "proj": "decoder.self_attention.linear_proj",
        "fc1": "decoder.mlp.linear_fc1",
        "fc2": "decoder.mlp.linear_fc2",
    }
    whole = {
        "words": "embedding.word_embeddings",
        "positions": "embedding.position_embeddings",
        "final": "decoder.final_layernorm",
    }
    names = {of_layer[part]: f"{base}.{layers}.{{}}.{name}" for part, name in parts.items() if part in of_layer}
    names |= {whole[part]: f"{base}.{name}" for part, name in parts.items() if part in whole}
    return names | {"output_layer": "lm_head"}


LLAMA3 = replace(
    LLAMA,
    head_dim=16,
    rope_scaling=RopeScalingConfig("llama3", factor=8.0, original_length=32, low_freq_factor=1.0, high_freq_factor=4.0),
)
YARN = replace(
    LLAMA,
    activation="geglu_exact",
    qkv_bias=True,
    attention_output_bias=True,
    rope_scaling=RopeScalingConfig("yarn", factor=4.0, original_length=16, beta_fast=8.0),
)
GEMMA2 = replace(
    LLAMA,
    num_layers=4,
    head_dim=16,
    activation="geglu",
    norm_placement="both",
    zero_centered_norm=True,
    embedding_scale=48**0.5,
    attention_scale=0.5,
    attention_softcap=0.5,
    logit_softcap=0.7,
    attention_pattern=("banded", "dense"),
    attention_window=7,
    tie_embeddings=True,
)
GEMMA3 = replace(
    GEMMA2,
    attention_softcap=None,
    logit_softcap=None,
    qk_layernorm=True,
    rope_local_base=100.0,
    rope_scaling=RopeScalingConfig("linear", factor=8.0),
    attention_pattern=("banded", "banded", "dense"),
)
NEOX = replace(
    GPT, parallel_block="two_norms", rotary_fraction=0.5, activation="gelu_exact", head_dim=None, rope_base=100.0
)
GPTJ = replace(
    GPT,
    parallel_block="one_norm",
    rotary_fraction=1 / 3,
    rope_base=10000.0,
    qkv_bias=False,
    attention_output_bias=False,
    output_bias=True,
)
OLMO2 = replace(LLAMA, norm_placement="post", qk_layernorm=True, qk_norm_scope="all_heads")
FALCON = replace(
    GPT,
    parallel_block="one_norm",
    activation="gelu_exact",
    bias=False,
    num_query_groups=1,
    tie_embeddings=True,
)
PHI3 = replace(LLAMA, rotary_fraction=0.5, attention_pattern=("banded",), attention_window=9)
BIGCODE = replace(GPT, position_embedding="learned", rope_base=10000.0, num_query_groups=1, tie_embeddings=True)
OPT = replace(GPT, position_embedding="learned", rope_base=10000.0, activation="relu", tie_embeddings=True)
NEMOTRON = replace(
    GPT, activation="squared_relu", zero_centered_norm=True, rotary_fraction=0.5, bias=False, num_query_groups=2
)
QWEN2 = replace(LLAMA, qkv_bias=True, tie_embeddings=True)


def _rope(model: ModelConfig, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base} | more}


def _interleaved(rows: Tensor, model: ModelConfig) -> Tensor:
    """GPT-J turns each dimension with its neighbour."""
    size = model.rotary_size
    turned = rows[:, :size].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat((turned, rows[:, size:]), 1)


GEMMA_NAMES = LLAMA_NAMES | {
    "decoder.post_attention_layernorm": "model.layers.{}.post_attention_layernorm",
    "decoder.pre_mlp_layernorm": "model.layers.{}.pre_feedforward_layernorm",
    "decoder.post_mlp_layernorm": "model.layers.{}.post_feedforward_layernorm",
}
GEMMA = {"query_pre_attn_scalar": 4, "sliding_window": 7, "hidden_activation": "gelu_pytorch_tanh"}
_LAYERS = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 192}
_GPT2 = {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}

PEERS = {
    "qwen2": Peer(QWEN2, "Qwen2ForCausalLM", llama_settings(QWEN2), LLAMA_NAMES),
    "llama3": Peer(
        LLAMA3,
        "LlamaForCausalLM",
        llama_settings(LLAMA3)
        | _rope(
            LLAMA3,
            rope_type="llama3",
            factor=8.0,
            original_max_position_embeddings=32,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
        LLAMA_NAMES,
    ),
    "yarn": Peer(
        YARN,
        "LlamaForCausalLM",
        llama_settings(YARN, attention_bias=True, hidden_act="gelu")
        | _rope(YARN, rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0),
        LLAMA_NAMES,
    ),
    "gemma2": Peer(
        GEMMA2,
        "Gemma2ForCausalLM",
        llama_settings(GEMMA2, attn_logit_softcapping=0.5, final_logit_softcapping=0.7, **GEMMA),
        GEMMA_NAMES,
    ),
    "gemma3": Peer(
        GEMMA3,
        "Gemma3ForCausalLM",
        llama_settings(GEMMA3, **GEMMA)
        | {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": GEMMA3.rope_base},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        GEMMA_NAMES,
        settings_kind="Gemma3TextConfig",
    ),
    "gpt_neox": Peer(
        NEOX,
        "GPTNeoXForCausalLM",
        _LAYERS | {"max_position_embeddings": 64} | _rope(NEOX, partial_rotary_factor=0.5),
        gpt_names(
            "gpt_neox",
            "layers",
            words="embed_in",
            final="final_layer_norm",
            input_layernorm="input_layernorm",
            pre_mlp_layernorm="post_attention_layernorm",
            qkv="attention.query_key_value",
            proj="attention.dense",
            fc1="mlp.dense_h_to_4h",
            fc2="mlp.dense_4h_to_h",
        ),
    ),
    "gptj": Peer(
        GPTJ,
        "GPTJForCausalLM",
        _GPT2 | {"rotary_dim": 4, "tie_word_embeddings": False},
        gpt_names(
            "transformer",
            "h",
            words="wte",
            final="ln_f",
            input_layernorm="ln_1",
            qkv="attn.|qkv",
            proj="attn.out_proj",
            fc1="mlp.fc_in",
            fc2="mlp.fc_out",
        ),
        change=_interleaved,
    ),
    "olmo2": Peer(
        OLMO2,
        "Olmo2ForCausalLM",
        llama_settings(OLMO2),
        LLAMA_NAMES
        | {
            "decoder.post_attention_layernorm": "model.layers.{}.post_attention_layernorm",
            "decoder.post_mlp_layernorm": "model.layers.{}.post_feedforward_layernorm",
        },
    ),
    "falcon": Peer(
        FALCON,
        "FalconForCausalLM",
        {k: v for k, v in _LAYERS.items() if k != "intermediate_size"}
        | {"multi_query": True, "parallel_attn": True, "bias": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}
        | _rope(FALCON),
        gpt_names(
            "transformer",
            "h",
            words="word_embeddings",
            final="ln_f",
            input_layernorm="input_layernorm",
            qkv="self_attention.query_key_value",
            proj="self_attention.dense",
            fc1="mlp.dense_h_to_4h",
            fc2="mlp.dense_4h_to_h",
        ),
    ),
    "phi3": Peer(
        PHI3,
        "Phi3ForCausalLM",
        llama_settings(PHI3, sliding_window=9, resid_pdrop=0.0) | _rope(PHI3, partial_rotary_factor=0.5),
        LLAMA_NAMES
        | {
            "decoder.self_attention.linear_qkv": "model.layers.{}.self_attn.qkv_proj|qkv_one",
            "decoder.mlp.linear_fc1": "model.layers.{}.mlp.gate_up_proj",
        },
    ),
    "gpt_bigcode": Peer(
        BIGCODE,
        "GPTBigCodeForCausalLM",
        _GPT2 | {"multi_query": True, "activation_function": "gelu_pytorch_tanh"},
        gpt_names(
            "transformer",
            "h",
            words="wte",
            positions="wpe",
            final="ln_f",
            input_layernorm="ln_1",
            pre_mlp_layernorm="ln_2",
            qkv="attn.c_attn",
            proj="attn.c_proj",
            fc1="mlp.c_fc",
            fc2="mlp.c_proj",
        ),
    ),
    "nemotron": Peer(
        NEMOTRON,
        "NemotronForCausalLM",
        llama_settings(NEMOTRON, norm_eps=1e-5, partial_rotary_factor=0.5) | _rope(NEMOTRON, partial_rotary_factor=0.5),
        LLAMA_NAMES | PLAIN_MLP,
    ),
    "opt": Peer(
        OPT,
        "OPTForCausalLM",
        {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "ffn_dim": 192, "dropout": 0.0}
        | {"max_position_embeddings": 64, "word_embed_proj_dim": 48},
        gpt_names(
            "model.decoder",
            "layers",
            words="embed_tokens",
            positions="embed_positions",
            final="final_layer_norm",
            input_layernorm="self_attn_layer_norm",
            pre_mlp_layernorm="final_layer_norm",
            qkv="self_attn.|qkv",
            proj="self_attn.out_proj",
            fc1="fc1",
            fc2="fc2",
        ),
    ),
}
"""Families that together have every option."""
