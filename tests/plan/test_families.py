"""Parameters of published models: as planned, as transformers builds them, and by hand from their config.json."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Starcoder2Config,
)

from megagpt.config.architecture import ModelConfig
from megagpt.config.load import load
from megagpt.plan.job import Job
from megagpt.plan.memory import layer_activations
from megagpt.plan.parameters import layer_parameters, qkv_width, total_parameters
from megagpt.train.flops import flops_per_token, matmul_parameters

LLAMA = {
    "position_embedding": "rope",
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
GEMMA = LLAMA | {
    "activation": "geglu",
    "norm_placement": "both",
    "zero_centered_norm": True,
    "tie_embeddings": True,
    "head_dim": 256,
}


def sizes(layers: int, hidden: int, heads: int, groups: int, ffn: int, vocabulary: int) -> tuple[dict, dict]:
    """As our configuration and as transformers' names them."""
    ours = (layers, hidden, heads, groups, ffn, vocabulary)
    names = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "vocab_size")
    theirs = ("num_hidden_layers", *names[1:3], "num_key_value_heads", "intermediate_size", "vocab_size")
    return dict(zip(names, ours, strict=True)), dict(zip(theirs, ours, strict=True))


def family(made: type, shape: tuple[dict, dict], ours: dict, theirs: dict | None = None):
    """Our model, and transformers' configuration of it."""
    special = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    return ModelConfig(**shape[0] | ours), made(**special | shape[1] | (theirs or {}))


QWEN = sizes(28, 3584, 28, 4, 18944, 152064)
GEMMA2 = sizes(42, 3584, 16, 8, 14336, 256000)
GEMMA3 = sizes(34, 2560, 8, 4, 10240, 262208)
LLAMA3 = sizes(32, 4096, 32, 8, 14336, 128256)
PYTHIA = sizes(32, 4096, 32, 32, 16384, 50432)
FALCON = sizes(32, 4544, 71, 1, 18176, 65024)
GPTJ = sizes(28, 4096, 16, 16, 16384, 50400)
OLMO2 = sizes(32, 4096, 32, 32, 11008, 100352)
PHI4 = sizes(40, 5120, 40, 10, 17920, 100352)
STARCODER2 = sizes(32, 4608, 36, 4, 18432, 49152)
GPTJ_NAMES = {"n_layer": 28, "n_embd": 4096, "n_head": 16, "n_inner": 16384, "tie_word_embeddings": False}
PARALLEL = {"position_embedding": "rope", "tie_embeddings": False}

PUBLISHED = {
    "Qwen2.5-7B": (
        family(Qwen2Config, QWEN, LLAMA | {"qkv_bias": True}),
        28 * (3584 * 4608 + 4608 + 3584 * 3584 + 3 * 3584 * 18944 + 2 * 3584) + 2 * 152064 * 3584 + 3584,
        7_615_616_512,
    ),
    "Gemma-2-9b": (
        family(Gemma2Config, GEMMA2, GEMMA | {"attention_softcap": 50.0}, {"head_dim": 256}),
        42 * (3584 * 8192 + 4096 * 3584 + 3 * 3584 * 14336 + 4 * 3584) + 256000 * 3584 + 3584,
        9_241_705_984,
    ),
    "Gemma-3-4b": (
        family(Gemma3TextConfig, GEMMA3, GEMMA | {"qk_layernorm": True}, {"head_dim": 256}),
        34 * (2560 * 4096 + 2048 * 2560 + 3 * 2560 * 10240 + 4 * 2560 + 2 * 256) + 262208 * 2560 + 2560,
        3_880_263_168,
    ),
    "Llama-3.1-8B": (
        family(LlamaConfig, LLAMA3, LLAMA),
        32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 128256 * 4096 + 4096,
        8_030_261_248,
    ),
    "Pythia-6.9b": (
        family(GPTNeoXConfig, PYTHIA, PARALLEL | {"parallel_block": "two_norms", "activation": "gelu_exact"}),
        32 * (12 * 4096**2 + (3 + 1 + 4 + 1) * 4096 + 4 * 4096) + 2 * 50432 * 4096 + 2 * 4096,
        6_857_302_016,
    ),
    "Falcon-7b": (
        family(
            FalconConfig,
            FALCON,
            PARALLEL | {"parallel_block": "one_norm", "bias": False, "tie_embeddings": True},
            {"num_hidden_layers": 32, "multi_query": True, "parallel_attn": True, "bias": False},
        ),
        32 * (4544 * 4672 + 4544 * 4544 + 2 * 4544 * 18176 + 2 * 4544) + 65024 * 4544 + 2 * 4544,
        6_921_720_704,
    ),
    "GPT-J-6b": (
        family(
            GPTJConfig,
            GPTJ,
            PARALLEL
            | {"parallel_block": "one_norm", "output_bias": True, "qkv_bias": False, "attention_output_bias": False},
            GPTJ_NAMES,
        ),
        28 * (12 * 4096**2 + 16384 + 4096 + 2 * 4096) + 2 * 50400 * 4096 + 50400 + 2 * 4096,
        6_050_882_784,
    ),
    "OLMo-2-7b": (
        family(
            Olmo2Config,
            OLMO2,
            LLAMA | {"norm_placement": "post", "qk_layernorm": True, "qk_norm_scope": "all_heads"},
        ),
        32 * (4 * 4096**2 + 3 * 4096 * 11008 + 4 * 4096) + 2 * 100352 * 4096 + 4096,
        7_298_617_344,
    ),
    "Phi-4": (
        family(Phi3Config, PHI4, LLAMA, {"pad_token_id": 0}),
        40 * (5120 * 7680 + 5120 * 5120 + 3 * 5120 * 17920 + 2 * 5120) + 2 * 100352 * 5120 + 5120,
        14_659_507_200,
    ),
    "StarCoder2-7b": (
        family(Starcoder2Config, STARCODER2, {"position_embedding": "rope"}),
        32 * (4608 * 5632 + 5632 + 4608 * 4608 + 4608 + 2 * 4608 * 18432 + 18432 + 4608 + 4 * 4608)
        + 49152 * 4608
        + 2 * 4608,
        7_173_923_840,
    ),
}
"""Our model and transformers' configuration, the sum by hand, and what it must come to."""


def unpadded(model: ModelConfig) -> int:
    """Parameters without the rows that pad the vocabulary."""
    tables = 1 if model.shares_embeddings else 2
    padding = model.padded_vocab_size - model.vocab_size
    return total_parameters(model) - padding * (tables * model.hidden_size + model.output_bias)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str):
    (ours, theirs), by_hand, published = PUBLISHED[name]
    assert unpadded(ours) == by_hand == published == built(theirs)


def built(config: PretrainedConfig) -> int:
    """Parameters of transformers' model, of one layer and of two, as many layers as it has."""
    counts = []
    layers = config.num_hidden_layers
    for depth in (1, 2):
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1] * depth
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()))
    config.num_hidden_layers = layers
    return counts[0] + (layers - 1) * (counts[1] - counts[0])


def test_ranks_that_share_a_key_head():
    """Falcon's one group on four ranks: they divide the projection's rows, and each has a norm of that group's keys."""
    model = ModelConfig(
        hidden_size=256, num_attention_heads=8, num_query_groups=1, normalization="rmsnorm", activation="geglu",
        ffn_hidden_size=512, bias=False, qk_layernorm=True, qk_norm_scope="all_heads",
    )  # fmt: skip
    assert qkv_width(model, 4) == (8 + 2) * 32 // 4
    assert layer_parameters(model, 4) == 256 * (80 + 2 * 32 + 2 * 128 + 128) + (2 + 1) * 32 + 2 * 256


def test_norm_over_all_heads_is_shared():
    model = ModelConfig(hidden_size=256, num_attention_heads=8, num_query_groups=4, normalization="rmsnorm", bias=False)
    wide = layer_parameters(ModelConfig(**vars(model) | {"qk_layernorm": True, "qk_norm_scope": "all_heads"}), 2)
    narrow = layer_parameters(ModelConfig(**vars(model) | {"qk_layernorm": True}), 2)
    assert wide - layer_parameters(model, 2) == (8 + 4) * 32 // 2
    assert narrow - layer_parameters(model, 2) == 2 * 32


@pytest.mark.parametrize("name", ["Gemma-2-9b", "Falcon-7b"])
def test_flops(name: str):
    """6 a weight of a matrix; Gemma's heads are wider than its stream, Falcon's keys and values have one head."""
    model = PUBLISHED[name][0][0]
    widths = {"Gemma-2-9b": (4096, 2048, 3 * 14336), "Falcon-7b": (4544, 64, 2 * 18176)}[name]
    matrices = model.hidden_size * (2 * widths[0] + 2 * widths[1] + widths[2])
    weights = model.num_layers * matrices + model.hidden_size * model.vocab_size
    assert matmul_parameters(model) == weights
    attention = 12 * model.num_layers * model.sequence_length * widths[0]
    assert flops_per_token(model) == 6 * weights + attention


def test_scores_that_no_fused_kernel_caps_are_in_memory():
    """By 128 MiB a layer: of 8 heads' scores in bf16 the hyperbolic tangents and the probabilities."""
    base = ["model=tiny", "data.corpora=[]", "model.sequence_length=2048", "model.num_attention_heads=8"]

    def kept(*overrides: str) -> float:
        return layer_activations(Job(load([*base, "optim.precision=bf16", *overrides]), 1))

    capped = "model.attention_softcap=50.0"
    assert kept(capped, "model.head_dim=64") == kept("model.head_dim=64")
    pairs, statistics = 8 * 2048**2, 4 * 8 * 2048
    assert kept(capped, "model.head_dim=32") - kept("model.head_dim=32") == 2 * 2 * pairs - statistics
