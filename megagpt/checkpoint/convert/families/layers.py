"""Keys of config.json that most families share: the shape with Llama's names, and the layers with a window."""

from collections.abc import Sequence
from typing import Any

from megagpt.checkpoint.convert.families.values import REQUIRED, Values
from megagpt.checkpoint.files import shown
from megagpt.config.schema import ModelConfig

KINDS = {"full_attention": "dense", "sliding_attention": "banded"}


def shape(
    config: Values,
    groups: int | None = None,
    head_dim: int | None = None,
    length: int = 2048,
    tied: bool = False,
    grouped: bool = True,
) -> dict[str, Any]:
    """Fields of `ModelConfig` from keys with Llama's names. The other arguments are the family's defaults.

    grouped: whether the family has grouped-query attention and heads of any width.
    """
    heads, hidden = config.integer("num_attention_heads", REQUIRED), config.integer("hidden_size", REQUIRED)
    width = config.integer("head_dim", head_dim, null=True) if grouped else None
    return {
        "name": config.path.parent.name,
        "num_layers": config.layers("num_hidden_layers"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": config.integer("num_key_value_heads", groups, null=True) or heads if grouped else heads,
        "head_dim": None if width is None or width * heads == hidden else width,
        "ffn_hidden_size": config.integer("intermediate_size", REQUIRED),
        "sequence_length": config.integer("max_position_embeddings", length),
        "vocab_size": config.integer("vocab_size", REQUIRED),
        "tie_embeddings": config.flag("tie_word_embeddings", tied),
        "attention_dropout": config.dropout("attention_dropout"),
        "init_std": config.number("initializer_range", 0.02),
    }


def write_shape(model: ModelConfig) -> dict[str, Any]:
    """The keys that `shape` reads, except the keys of all families."""
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "max_position_embeddings": model.sequence_length,
        "attention_dropout": model.attention_dropout,
    }


def head_dim(model: ModelConfig) -> dict[str, int]:
    """The key for the width of a head, if the width does not follow from the other keys."""
    return {} if model.head_size * model.num_attention_heads == model.hidden_size else {"head_dim": model.head_size}


def pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest pattern that the layers' kinds repeat."""
    kinds = tuple(kinds)
    period = next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[: len(kinds) - n])
    return kinds[:period]


def everywhere(window: int | None) -> dict[str, Any]:
    """Fields for a window on all layers, or on none."""
    return {} if window is None else {"attention_pattern": ("banded",), "attention_window": window}


def by_layer(config: Values, layers: int, window: int | None, sliding: Sequence[bool]) -> dict[str, Any]:
    """Fields for windows by layer, from the key `layer_types`, or from `sliding` if the key is missing."""
    known = list(KINDS)

    def fits(value: Any) -> bool:
        return isinstance(value, list) and len(value) == layers and all(kind in known for kind in value)

    kinds = config.get("layer_types", None, fits, f"a list of {' and '.join(known)} for {layers} layers")
    banded = list(sliding) if kinds is None else [kind == "sliding_attention" for kind in kinds]
    if not any(banded):
        return {}
    if window is None:
        raise config.flaw(f"layer_types has sliding_attention, but sliding_window is {shown(window)}")
    return {
        "attention_pattern": pattern(["banded" if one else "dense" for one in banded]),
        "attention_window": window,
    }


def common_window(model: ModelConfig) -> int | None:
    """The window of all layers, or None, for a family whose layers all have the same window or none."""
    return model.attention_window if "banded" in model.attention_pattern[: model.num_layers] else None


def layer_types(model: ModelConfig) -> list[str]:
    """transformers' name of every layer's kind of attention."""
    return [
        "full_attention" if model.window(layer) is None else "sliding_attention" for layer in range(model.num_layers)
    ]
