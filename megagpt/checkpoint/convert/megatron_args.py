"""The model of a Megatron-LM checkpoint: its command-line arguments, and the names of its parameters."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.common import checked_model, inner_folder
from megagpt.checkpoint.convert.pickles import Record
from megagpt.checkpoint.files import read_bytes, shown
from megagpt.config.architecture import VOCAB_MULTIPLE
from megagpt.config.load import from_dict
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError, ConfigError

TRACKER = "latest_checkpointed_iteration.txt"
NORMALIZATION = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
POSITIONS = {"learned_absolute": "learned", "rope": "rope"}
UNSUPPORTED = {
    "num_experts": "mixture of experts",
    "multi_latent_attention": "multi-latent attention",
    "rotary_interleaved": "interleaved rotary positions",
    "use_rope_scaling": "scaled rotary positions",
    "quick_geglu": "quick GEGLU",
}
"""{argument that changes the model in a way that megagpt does not read from Megatron-LM: its description}."""

FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""{Transformer Engine's name of a norm, which it fuses with the next linear layer: our name}."""
OLD_NAMES = (
    (r"^language_model\.", ""),
    (r"^(encoder|transformer)\.", "decoder."),
    (r"^output_layer\.", "output_layer."),
    (r"\.(self_)?attention\.query_key_value\.", ".self_attention.linear_qkv."),
    (r"\.(self_)?attention\.dense\.", ".self_attention.linear_proj."),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.post_attention_(layer)?norm\.", ".pre_mlp_layernorm."),
    (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
    (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
    (r"^decoder\.final_norm\.", "decoder.final_layernorm."),
)
"""Replacements (pattern, text) that turn names from before Megatron-Core into current ones."""


def canonical(name: str) -> str:
    """megagpt's name of a parameter, for any of Megatron-LM's current and former names."""
    for pattern, ours in OLD_NAMES if name.startswith("language_model.") else ():
        name = re.sub(pattern, ours, name)
    for theirs, ours in FUSED_NORMS.items():
        name = name.replace(theirs, ours)
    return name


def fused(name: str) -> str:
    """The name of a parameter in Megatron-Core's sharded checkpoints, which use Transformer Engine's names of norms."""
    for theirs, ours in FUSED_NORMS.items():
        name = re.sub(rf"(?<=\.){re.escape(ours)}(?=weight$|bias$)", theirs, name)
    return name


def iteration_folder(path: Path) -> Path:
    """The folder of one iteration: the one that the tracker file in `path` names, or `path` itself.

    Raises CheckpointError when the tracker names no iteration, or a link.
    """
    tracker = path / TRACKER
    if not os.path.lexists(tracker):
        return path
    text = read_bytes(tracker, limit=64).decode(errors="replace").strip()
    if text == "release":
        return inner_folder(path / text)
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise CheckpointError(f"{tracker} holds {text!r}, which is not an iteration")
    return inner_folder(path / f"iter_{int(text):07d}")


def arguments(state: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The arguments of the run that saved `state`. Raises CheckpointError when it has none."""
    args = state.get("args")
    if not isinstance(args, Record) or not isinstance(args.state, dict):
        raise CheckpointError(f"{where} holds no arguments (`args`) of Megatron-LM: give --like a megagpt config")
    return args.state


def model_of(args: Mapping[str, Any], where: Path) -> ModelConfig:
    """The model that Megatron-LM's arguments describe. Raises CheckpointError for features that megagpt lacks."""

    def given(name: str, default: Any = None) -> Any:
        value = args.get(name, default)
        if not isinstance(value, str | int | float | None):
            raise CheckpointError(f"{where}: its arguments do not describe a model: {name} is {shown(value)}")
        return value

    for name, what in UNSUPPORTED.items():
        if given(name):
            raise CheckpointError(f"{where}: {what} ({name}={shown(given(name))}) is not read from Megatron-LM")
    heads, hidden = given("num_attention_heads"), given("hidden_size")
    norm, position = given("normalization", "LayerNorm"), given("position_embedding_type", "learned_absolute")
    flaws = []
    width, bias = given("kv_channels"), given("add_bias_linear", True)
    if norm not in NORMALIZATION:
        flaws.append(f"normalization is {shown(norm)}")
    if position not in POSITIONS:
        flaws.append(f"position_embedding_type is {shown(position)}")
    if flaws:
        raise CheckpointError(f"{where} is not a model of megagpt: {'; '.join(flaws)}")
    vocabulary = given("vocab_size")
    values = {
        "name": "megatron",
        "num_layers": given("num_layers"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": given("num_query_groups") if given("group_query_attention") else None,
        "head_dim": None if type(width) is type(heads) is int and width * heads == hidden else width,
        "ffn_hidden_size": given("ffn_hidden_size"),
        "sequence_length": given("max_position_embeddings") or given("seq_length"),
        "vocab_size": vocabulary if isinstance(vocabulary, int) else given("padded_vocab_size"),
        "position_embedding": POSITIONS[position],
        "rope_base": given("rotary_base", 10000),
        "rotary_fraction": given("rotary_percent", 1.0),
        "normalization": NORMALIZATION[norm],
        "norm_epsilon": given("norm_epsilon", given("layernorm_epsilon", 1e-5)),
        "zero_centered_norm": given("apply_layernorm_1p", False),
        "activation": "swiglu" if given("swiglu") else "squared_relu" if given("squared_relu") else "gelu",
        "bias": bias,
        "qkv_bias": True if given("add_qkv_bias") and not bias else None,
        "tie_embeddings": not given("untie_embeddings_and_output_weights", False),
        "qk_layernorm": given("qk_layernorm", False),
        "init_std": given("init_method_std", 0.02),
    }
    try:
        return checked_model(from_dict({"model": values}).model, where)
    except ConfigError as error:
        raise CheckpointError(f"{where}: its arguments do not describe a model: {error}") from None


def namespace(model: ModelConfig, step: int) -> argparse.Namespace:
    """Megatron-LM's arguments that describe the model on one rank."""
    return argparse.Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=model.num_query_groups is not None,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        seq_length=model.sequence_length,
        max_position_embeddings=model.sequence_length,
        vocab_size=model.vocab_size,
        padded_vocab_size=model.padded_vocab_size,
        make_vocab_size_divisible_by=VOCAB_MULTIPLE,
        position_embedding_type={ours: theirs for theirs, ours in POSITIONS.items()}[model.position_embedding],
        rotary_base=int(model.rope_base),
        rotary_percent=model.rotary_fraction,
        use_rope_scaling=model.rope_scaling.kind == "llama3",
        rope_scaling_factor=model.rope_scaling.factor,
        normalization={ours: theirs for theirs, ours in NORMALIZATION.items()}[model.normalization],
        norm_epsilon=model.norm_epsilon,
        apply_layernorm_1p=model.zero_centered_norm,
        swiglu=model.activation == "swiglu",
        squared_relu=model.activation == "squared_relu",
        add_bias_linear=model.bias,
        add_qkv_bias=model.has_qkv_bias,
        untie_embeddings_and_output_weights=not model.tie_embeddings,
        qk_layernorm=model.qk_layernorm,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method_std=model.init_std,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        transformer_impl="local",
        iteration=step,
        consumed_train_samples=0,
        consumed_valid_samples=0,
    )
