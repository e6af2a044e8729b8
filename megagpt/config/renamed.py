"""Keys that had another name before: typed, they are refused with the new name; saved configurations are translated."""

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
"""Old key -> new key, of the same section."""


def translate(values: Any) -> Any:
    """A saved configuration under today's keys; anything but a mapping comes back as it is.

    A key that is there under both names keeps the value that it has under the new one.
    """
    translated = dict(values) if isinstance(values, Mapping) else {}
    for old, new in RENAMED.items():
        (section, old_name), new_name = old.split("."), new.split(".")[1]
        own = translated.get(section)
        if isinstance(own, Mapping) and old_name in own:
            rest = {name: value for name, value in own.items() if name != old_name}
            translated[section] = {new_name: own[old_name]} | rest
    return translated or values
