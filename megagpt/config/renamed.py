"""Renamed keys. Overrides with an old name are refused with the new name; saved configurations are translated."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "data.infilling_rate": "data.fim_rate",
    "data.infilling_spm_rate": "data.fim_spm_rate",
    "data.infilling_unit_rate": "data.fim_unit_rate",
    "data.infilling_unit": "data.fim_unit",
    "data.infilling_piece_tokens": "data.fim_piece_tokens",
    "stage.infilling_cuts": "stage.fim_cuts",
    "ppo.missing_end_penalty": "ppo.missing_eos_penalty",
    "ppo.discount": "ppo.gamma",
    "ppo.value_lr": "ppo.critic_lr",
    "kernels.dropout_add": "kernels.bias_dropout_add",
}
"""{old key: new key, in the same section}."""


def translate(values: Any) -> Any:
    """A saved configuration with the current keys; a value that is not a mapping is returned unchanged.

    If a key is present under both names, the value under the new name is kept.
    """
    translated = dict(values) if isinstance(values, Mapping) else {}
    for old, new in RENAMED.items():
        (section, old_name), new_name = old.split("."), new.split(".")[1]
        own = translated.get(section)
        if isinstance(own, Mapping) and old_name in own:
            rest = {name: value for name, value in own.items() if name != old_name}
            translated[section] = {new_name: own[old_name]} | rest
    return translated or values
