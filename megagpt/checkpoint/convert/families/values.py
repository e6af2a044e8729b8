"""Reads values of a config.json; every value that is used is checked and recorded."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.common import LAYERS_LIMIT
from megagpt.checkpoint.files import shown
from megagpt.errors import CheckpointError

REQUIRED = object()
"""In place of a default, for keys that must be present."""
HARMLESS = re.compile(
    "model_type|architectures|(torch_)?dtype|transformers_version|use_cache|_name_or_path|(bos|eos|pad|unk|sep)_token_id"
    "|_?attn_implementation|attn_pdrop|(embd|resid)_pdrop|embed_dropout|classifier_dropout|summary_.*|task_specific_params"
    "|n_ctx|reorder_and_upcast_attn|gradient_checkpointing|return_dict|output_(attentions|hidden_states|past)"
    "|pretraining_tp|attention_layers|sliding_window|max_window_layers|is_(decoder|encoder_decoder)|id2label|label2id"
    "|cache_implementation|_?sliding_window_pattern|(scale_)?attention_softmax_in_fp32|layerdrop|prefix|finetuning_task"
    "|attention_dropout|auto_map|embedding_dropout|chunk_size_feed_forward|tokenizer_class|hidden_act|ff_factor"
)
"""Keys that do not change the model's results in families that do not read them."""
GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact"}
PLAIN = GELU | {"relu": "relu", "relu2": "squared_relu"}
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu", "gelu": "geglu_exact"}
"""{transformers' name of an activation: megagpt's}; of several names for one activation, the first is written."""


def name_of(activation: str, names: Mapping[str, str]) -> str:
    """transformers' name of an activation. If the family lacks it, the first name; `Family.held` detects that."""
    return next((theirs for theirs, ours in names.items() if ours == activation), next(iter(names)))


@dataclass(frozen=True)
class Values:
    """A config.json, or an object in it. All methods raise CheckpointError naming the file and the key."""

    path: Path
    kind: str
    """The `model_type`, for messages."""
    values: Mapping[str, Any]
    used: dict[str, Any] = field(default_factory=dict)
    """Keys that were read and checked, with their values; only these may be given to transformers."""
    objects: set[str] = field(default_factory=set)
    """Keys of the objects that were read; callers put the checked parts of these into `used`."""

    def get(self, key: str, default: Any, fits: Callable[[Any], bool], what: str, null: bool = False) -> Any:
        """The value, or `default` if the key is missing. None is accepted if it is the default, or with `null`.

        fits: whether a value is valid. what: description of valid values, for the message.
        """
        value = self.values.get(key, default)
        if value is REQUIRED:
            raise self.flaw(f"{key} is missing")
        if not (fits(value) or (value is None and (default is None or null))):
            raise self.flaw(f"{key} is {shown(value)}, not {what}")
        if key in self.values:
            self.used[key] = value
        return value

    def flaw(self, message: str) -> CheckpointError:
        """The error for a value that is missing or of the wrong kind."""
        return CheckpointError(f"{self.path} is not a complete config of {self.kind}: {message}")

    def refusal(self, message: str) -> CheckpointError:
        """The error for a feature that megagpt's models lack."""
        return CheckpointError(f"{self.path}: megagpt has no model with {message}")

    def integer(self, key: str, default: int | object | None = None, null: bool = False) -> Any:
        """A positive whole number."""
        return self.get(
            key, default, lambda value: type(value) is int and 0 < value < 1 << 40, "a positive integer", null
        )

    def layers(self, key: str) -> int:
        """The number of layers."""
        layers = self.integer(key, REQUIRED)
        if layers > LAYERS_LIMIT:
            raise self.flaw(f"{key} is {layers:,}; models of up to {LAYERS_LIMIT:,} layers are read")
        return layers

    def number(self, key: str, default: float | object | None, null: bool = False) -> Any:
        """A finite number."""

        def fits(value: Any) -> bool:
            return type(value) in (int, float) and math.isfinite(value)

        return self.get(key, default, fits, "a finite number", null)

    def dropout(self, key: str) -> float:
        """A share of dropout, 0 where there is none; null means 0."""
        return float(self.number(key, 0.0, null=True) or 0.0)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self.get(key, default, lambda value: isinstance(value, bool), "true or false")

    def choice(self, key: str, names: Mapping[str, str], default: str) -> str:
        """megagpt's name for a value that must be one of transformers' `names`."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in names:
            raise self.refusal(f"{key}={shown(value)}; known are {', '.join(names)}")
        if key in self.values:
            self.used[key] = value
        return names[value]

    def object(self, key: str) -> dict[str, Any] | None:
        """An object, whose own values are not checked here; None if the key is missing."""
        self.objects.add(key)
        value = self.values.get(key)
        if not isinstance(value, dict | None):
            raise CheckpointError(f"{self.path}: {key} is {shown(value)}, not an object")
        return value

    def only(self, **allowed: Sequence[Any]) -> None:
        """Raises for a key that is present with another value than the allowed ones."""
        for key, good in allowed.items():
            if key in self.values:
                value = self.values[key]
                if not any(type(value) is type(known) and value == known for known in good):
                    raise self.refusal(f"{key}={shown(value)}")
                self.used[key] = value
