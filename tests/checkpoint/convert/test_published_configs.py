"""The configs of published models: all are read, and transformers' own models have the tensors that follow."""

import json
import logging
import math
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from megagpt.checkpoint.convert import hugging_face_config as about
from megagpt.checkpoint.convert.common import parameters
from megagpt.checkpoint.convert.families.base import effective
from megagpt.checkpoint.convert.families.registry import BY_TYPE, FAMILIES, choose
from megagpt.checkpoint.convert.hugging_face import parts
from megagpt.config.architecture import RopeScalingConfig
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from tests.checkpoint.convert.published import ENTRIES, PARAMETERS, PUBLISHED

transformers = pytest.importorskip("transformers")
rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
MODELS = [(family, name) for family, models in PUBLISHED.items() for name in models]
UNREAD = {"transformers_version", "_name_or_path", "architectures", "dtype", "use_cache", "summary_first_dropout"}
"""Keys of which nothing is kept, or which come from elsewhere."""
LOST = {
    "gpt2": {"n_inner", "summary_type", "embd_pdrop", "n_ctx"},
    "gpt_neo": {"intermediate_size", "attention_types", "attention_layers"},
    "gptj": {"n_inner", "rotary", "scale_attn_weights"},
    "phi3": {"attention_bias"},
    "starcoder2": {"mlp_type", "norm_type", "embedding_dropout"},
    "falcon": {"apply_residual_connection_post_layernorm", "num_ln_in_parallel_attn"},
    "gpt_neox": {"classifier_dropout"},
    "qwen2": {"max_window_layers"},
    "qwen3": {"max_window_layers"},
    "gemma2": {"cache_implementation", "hidden_act"},
    "gemma3_text": {"sliding_window_pattern", "_sliding_window_pattern"},
    "opt": {"layerdrop", "prefix"},
}
"""Keys with no effect on what the model computes that are not written as they were."""


def read(folder: Path, values: dict) -> tuple[str, ModelConfig, dict]:
    (folder / "config.json").write_text(json.dumps(values))
    return about.read(folder / "config.json")


def short(settings: dict, layers: int) -> dict:
    """The settings with fewer layers."""
    key = next(key for key in ("num_hidden_layers", "n_layer", "num_layers") if key in settings)
    changes = {key: layers}
    if "layer_types" in settings:
        changes["layer_types"] = settings["layer_types"][:layers]
    if "attention_types" in settings:
        changes["attention_types"] = [[["global"], layers]]
    return settings | changes


def shapes(architecture: str, settings: dict) -> dict[str, tuple[int, ...]]:
    """transformers' parameters, each once."""
    kind = getattr(transformers, architecture)
    with torch.device("meta"):
        module = kind(kind.config_class(**json.loads(json.dumps(settings))))
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def ours(architecture: str, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, shape in parameters(model).items():
        found |= {
            part.name.replace("embed_out", "lm_head"): part.shape for part in parts(architecture, name, shape, model)
        }
    return found


def test_every_family_has_published_configs():
    assert PUBLISHED.keys() == BY_TYPE.keys()
    assert all(entry["source"] for models in ENTRIES.values() for entry in models.values())


@pytest.mark.parametrize(("family", "name"), MODELS, ids=lambda value: value)
def test_tensors_are_transformers_own(family, name, tmp_path, caplog):
    """Names and shapes with two layers, and from those the number of parameters with all."""
    caplog.set_level(logging.WARNING)
    architecture, model, settings = read(tmp_path, PUBLISHED[family][name])
    assert "nothing was made of" not in caplog.text
    assert architecture == BY_TYPE[family].architecture
    one, two = (shapes(architecture, short(settings, layers)) for layers in (1, 2))
    assert ours(architecture, replace(model, num_layers=2)) == two
    count = {len(found): sum(map(prod, found.values())) for found in (one, two)}
    layer = count[len(two)] - count[len(one)]
    total = count[len(one)] + (model.num_layers - 1) * layer
    assert sum(map(prod, ours(architecture, model).values())) == total == PARAMETERS.get(name, total)
    size = name.replace("-4k", "").replace("-16k", "").rpartition("-")[2]
    if size[-1] in "BM" and size[:-1].replace(".", "").isdigit():  # the name says it, more or less
        said = float(size[:-1]) * (1e9 if size[-1] == "B" else 1e6)
        assert 0.75 < total / said < 1.7  # Falcon3-1B has 1.67 billion


@pytest.mark.parametrize("family", PUBLISHED)
def test_what_is_written_is_what_was_read(family, tmp_path):
    """transformers makes the same config of ours as of the published one, and the model goes back to its family."""
    for name, values in PUBLISHED[family].items():
        _, model, settings = read(tmp_path, values)
        found, held = choose(model, family)
        assert found.model_type == family
        assert effective(held) == effective(model)
        kind = getattr(transformers, found.architecture).config_class
        sides = [kind(**json.loads(json.dumps(side))).to_dict() for side in (settings, found.config(model))]
        skipped = UNREAD | LOST.get(family, set()) | {key for key in sides[0] if key.endswith("_token_id")}
        theirs, back = ({key: side[key] for key in side if key not in skipped} for side in sides)
        assert {key: back.get(key, "nothing") for key in theirs} == theirs, name


GPT_SHAPE, LLAMA_SHAPE = ("n_layer", "n_embd", "n_head"), ("num_hidden_layers", "hidden_size", "num_attention_heads")
NEEDED = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gptj"), GPT_SHAPE),
    "gpt_neo": ("num_layers", "hidden_size", "num_heads", "max_position_embeddings", "attention_types"),
    "opt": (*LLAMA_SHAPE, "ffn_dim"),
    "falcon": LLAMA_SHAPE,
}
"""Keys without which a family's config is refused, beside vocab_size."""


@pytest.mark.parametrize("family", PUBLISHED)
def test_defaults_are_transformers_own(family, tmp_path):
    """A key that is left out means what transformers, which writes all keys, makes of it."""
    published = next(iter(PUBLISHED[family].values()))
    needed = NEEDED.get(family, (*LLAMA_SHAPE, "intermediate_size"))
    values = {key: published[key] for key in (*needed, "vocab_size")}
    if family in ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "starcoder2"):
        values |= {"hidden_size": 4096, "num_attention_heads": 32}  # for their default number of key and value heads
    kind = getattr(transformers, BY_TYPE[family].architecture).config_class
    whole = json.loads(kind(**json.loads(json.dumps(values))).to_json_string(use_diff=False))
    short, full = (read(tmp_path, side | {"model_type": family})[1] for side in (values, whole))
    assert short == full


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 512}
SCALED = [
    {},
    {"mscale": 0.707},
    {"mscale": 0.707, "mscale_all_dim": 1.0},
    {"mscale": 0.707, "mscale_all_dim": 1.0, "attention_factor": 1.5},
    {"mscale": 0.707, "mscale_all_dim": 1.0, "factor": 1.0},
]


@pytest.mark.parametrize("change", SCALED, ids=str)
def test_the_attention_factor_of_yarn_is_transformers_own(change, tmp_path):
    published = next(iter(PUBLISHED["llama"].values()))
    values = {key: value for key, value in published.items() if not key.startswith("rope_")}
    values |= {"model_type": "llama", "rope_parameters": YARN | change}
    scaling = read(tmp_path, values)[1].rope_scaling
    default = 0.1 * math.log(scaling.factor) + 1
    _, wanted = rope_utils.ROPE_INIT_FUNCTIONS["yarn"](transformers.LlamaConfig(**json.loads(json.dumps(values))))
    assert (scaling.attention_factor or default) == pytest.approx(wanted, rel=1e-12)


def test_scaled_gemma_3_without_an_original_length_has_its_own_length(tmp_path):
    published = next(iter(PUBLISHED["gemma3_text"].values()))
    values = {key: value for key, value in published.items() if not key.startswith("rope_")}
    values |= {"model_type": "gemma3_text", "max_position_embeddings": 4096}
    for scaling in ({"rope_type": "yarn"}, {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}):
        sides = {"full_attention": scaling | {"factor": 2.0}, "sliding_attention": {"rope_type": "default"}}
        theirs = transformers.Gemma3TextConfig(**json.loads(json.dumps(values | {"rope_parameters": sides})))
        wanted = theirs.rope_parameters["full_attention"]["original_max_position_embeddings"]
        assert read(tmp_path, values | {"rope_parameters": sides})[1].rope_scaling.original_length == wanted == 4096


@pytest.mark.parametrize("family", ["llama", "opt", "falcon", "gpt_neo"])
def test_no_attention_dropout_is_none(family, tmp_path):
    values = next(iter(PUBLISHED[family].values())) | {"attention_dropout": None, "model_type": family}
    assert read(tmp_path, values)[1].attention_dropout == 0


REFUSED = [
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}, "longrope.*nearest"),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 512}, "OPT-350m has: the nearest is OPT-125m"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
    ("falcon", {"alibi": True}, "alibi=True.*nearest is Falcon-7B"),
    ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2 and new_decoder_architecture=False"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters.'rope_theta' beside full_attention"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gptj", {"rotary_dim": 7}, "rotary_dim is 7"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 24}, "layer_types has sliding_attention, but sliding_window"),
    ("llama", {"model_type": "mine", "auto_map": {"AutoModel": "a.B"}}, "known are gpt2,.*code of its own .auto_map."),
    ("llama", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "power": 3}}, "rope_parameters.'power'"),
    ("gpt_bigcode", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("starcoder2", {"mlp_type": "gated"}, "mlp_type='gated'"),
    ("mistral", {"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts.*Mistral 7B"),
    ("qwen3", {"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts.*Qwen3-32B"),
    ("llama", {"model_type": "deepseek_v3", "n_routed_experts": 256}, "mixture of experts"),
    ("llama", {"model_type": "gpt_oss"}, "mixture of experts"),
    ("llama", {"model_type": "smollm3"}, "no positions.*SmolLM2"),
    ("llama", {"is_causal": False}, "is_causal=False"),
    ("llama", {"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config="),
    ("llama", {"quantization_config": {"quant_method": "awq"}}, "'awq'.*the model that this one was made of"),
]


@pytest.mark.parametrize(("family", "change", "message"), REFUSED, ids=lambda value: f"{value!s:.50}")
def test_what_cannot_be_expressed_is_named(family, change, message, tmp_path):
    values = next(iter(PUBLISHED[family].values())) | change
    with pytest.raises(CheckpointError, match=f"config.json.*{message}"):
        read(tmp_path, values)


def test_families_are_found_by_what_a_model_has():
    """A model that no folder gave goes to the family with the same parts."""
    gpt = ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4)
    llama = replace(gpt, position_embedding="rope", normalization="rmsnorm", activation="swiglu", bias=False)
    gemma = replace(llama, activation="geglu", zero_centered_norm=True, norm_placement="both", embedding_scale=8.0)
    cases = {
        "gpt2": gpt,
        "gpt_neo": replace(gpt, attention_pattern=("dense", "banded")),
        "gpt_bigcode": replace(gpt, num_query_groups=1),
        "llama": replace(llama, num_query_groups=2, head_dim=8),
        "mistral": replace(llama, attention_pattern=("banded",)),
        "qwen2": replace(llama, qkv_bias=True),
        "qwen3": replace(llama, qk_layernorm=True, attention_pattern=("dense", "banded")),
        "gemma2": replace(gemma, attention_softcap=50.0),
        "gemma3_text": replace(gemma, qk_layernorm=True, attention_pattern=("banded", "dense"), rope_local_base=100.0),
        "starcoder2": replace(gpt, position_embedding="rope"),
        "gpt_neox": replace(gpt, position_embedding="rope", rotary_fraction=0.25, parallel_block="two_norms"),
        "gptj": replace(
            gpt,
            position_embedding="rope",
            parallel_block="one_norm",
            qkv_bias=False,
            attention_output_bias=False,
            output_bias=True,
        ),
        "olmo2": replace(llama, norm_placement="post", qk_layernorm=True, qk_norm_scope="all_heads"),
        "phi3": replace(llama, rotary_fraction=0.5),
        "falcon": replace(gpt, position_embedding="rope", parallel_block="one_norm", bias=False),
    }
    assert {family: choose(model)[0].model_type for family, model in cases.items()} == {one: one for one in cases}
    assert len(cases) == len(FAMILIES) - 1  # OPT's models are GPT-2's as well
    assert choose(replace(gpt, activation="relu"), "opt")[0].model_type == "opt"
    with pytest.raises(CheckpointError, match=r"Gemma3ForCausalLM lacks model\.rope_local_base=None"):
        choose(
            replace(cases["gemma3_text"], rope_local_base=None, rope_scaling=RopeScalingConfig("linear", factor=8.0))
        )
    zeros = choose(replace(llama, qkv_bias=True, activation="geglu", head_dim=8, bias=True))
    assert zeros[0].model_type == "llama" and zeros[1].has_attention_output_bias
