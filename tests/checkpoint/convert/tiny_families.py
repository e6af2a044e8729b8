"""A tiny random model of transformers for every family, with all that is peculiar to it, and ours with its weights."""

import math
from pathlib import Path

import torch

from megagpt.checkpoint.convert import hugging_face
from megagpt.config.schema import Config, OptimConfig, ParallelConfig
from tests.model.tiny import VOCAB

LLAMA = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
FALCON = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}
GEMMA = LLAMA | {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 6, "hidden_size": 32}
ROPE = {
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "attention_factor": 1.3},
}


def scaled(kind: str, theta: float = 500.0) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | ROPE.get(kind, {})}


TINY = {
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"activation_function": "gelu"}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            "num_layers": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "activation_function": "relu",
        },
    ),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT2),
    "gpt_bigcode-heads": ("GPTBigCodeForCausalLM", GPT2 | {"multi_query": False, "activation_function": "relu2"}),
    "gptj": ("GPTJForCausalLM", GPT2 | {"rotary_dim": 8}),
    "opt": (
        "OPTForCausalLM",
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 96,
            "max_position_embeddings": 64,
            "dropout": 0.0,
            "pad_token_id": None,
        },
    ),
    "llama-biases": (
        "LlamaForCausalLM",
        LLAMA | scaled("llama3") | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "llama-linear": ("LlamaForCausalLM", LLAMA | scaled("linear") | {"head_dim": 16, "tie_word_embeddings": True}),
    "llama-dynamic": ("LlamaForCausalLM", LLAMA | scaled("dynamic")),
    "llama-yarn": ("LlamaForCausalLM", LLAMA | scaled("yarn")),
    "mistral": ("MistralForCausalLM", LLAMA | {"head_dim": 16, "sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | scaled("yarn") | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2ForCausalLM",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "pad_token_id": None},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention"],
            "num_key_value_heads": 1,
            "final_logit_softcapping": 3.0,
            "pad_token_id": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": (
        "Phi3ForCausalLM",
        LLAMA | {"sliding_window": 6, "partial_rotary_factor": 0.5, "pad_token_id": None, "eos_token_id": 1},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", LLAMA | {"rotary_pct": 0.5, "rotary_emb_base": 700}),
    "gpt_neox-serial": (
        "GPTNeoXForCausalLM",
        LLAMA | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", LLAMA | {"sliding_window": 6, "rope_theta": 500.0}),
    "olmo2": ("Olmo2ForCausalLM", LLAMA | scaled("default") | {"pad_token_id": None}),
    "falcon": ("FalconForCausalLM", FALCON),
    "falcon-40b": (
        "FalconForCausalLM",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 80},
    ),
    "falcon-11b": (
        "FalconForCausalLM",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-serial": ("FalconForCausalLM", FALCON | {"multi_query": False, "parallel_attn": False}),
}
"""Name -> transformers' class and settings. Families with several ways of computing are there several times."""


def transformers_model(name: str, layers: int | None = None):
    """transformers' model in float32 with random weights of ordinary size, no bias and no norm at its first value."""
    import transformers

    architecture, settings = TINY[name]
    kind = getattr(transformers, architecture)
    special = {"bos_token_id": 0, "eos_token_id": 0} | {k: v for k, v in settings.items() if k.endswith("_token_id")}
    config = kind.config_class(vocab_size=VOCAB, **settings | special, attn_implementation="eager")
    model = kind(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            else:
                parameter.add_(0.3 * noise)
    return model


def our_modules(folder: Path, **parallel) -> tuple[list, Config]:
    """This rank's chunks of our model with the weights of a folder of transformers."""
    from megatron.core import parallel_state

    from megagpt.model.gpt import GPT
    from megagpt.model.parameters import named_boxes

    source = hugging_face.open_source(folder, None)
    config = Config(model=source.model, parallel=ParallelConfig(**parallel), optim=OptimConfig(precision="fp32"))
    stage, stages = parallel_state.get_pipeline_model_parallel_rank(), config.parallel.pipeline_parallel_size
    module = GPT(config, pre_process=stage == 0, post_process=stage == stages - 1)
    with torch.no_grad():
        for name, parameter, boxes in named_boxes([module]):
            full = source.read(f"model/{name}")
            parameter.copy_(torch.cat([box.of(full).flatten() for box in boxes]).view_as(parameter))
    return [module], config
