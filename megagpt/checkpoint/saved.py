"""What a checkpoint says of the run that saved it, as far as that can be: a file's word is all that it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megagpt.checkpoint.convert.common import check_parameters, checked_model, parameters
from megagpt.checkpoint.files import shown
from megagpt.checkpoint.format import MANIFEST, Checkpoint, read_manifest
from megagpt.config.load import from_saved
from megagpt.config.schema import Config
from megagpt.data.identity import Identity
from megagpt.errors import CheckpointError, ConfigError

PREFIX = "model/"


def config_of(path: Path, manifest: Mapping[str, Any] | None = None) -> Config:
    """The configuration that made the checkpoint folder `path`. Raises CheckpointError when its manifest has none.

    manifest: what `read_manifest` gives, where that was read.
    """
    manifest = read_manifest(path) if manifest is None else manifest
    try:
        return from_saved(manifest["config"])
    except KeyError:
        raise CheckpointError(f"{path / MANIFEST} has no config: it does not say what model it is of") from None
    except (AttributeError, ConfigError, RecursionError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} has a config that is none of a run: {error}") from None


def buildable_config(saved: Path | Checkpoint) -> Config:
    """`config_of` a checkpoint, whose model can be built and has the tensors that are there. Raises CheckpointError.

    What builds a model asks for it: a wrong number would cost hours or all memory before any tensor is compared.
    """
    checkpoint = saved if isinstance(saved, Checkpoint) else Checkpoint.open(saved)
    config = config_of(checkpoint.path, checkpoint.manifest)
    model = checked_model(config.model, checkpoint.path / MANIFEST)
    found = {
        name.removeprefix(PREFIX): stored[0].entry.global_shape
        for name, stored in checkpoint.tensors.items()
        if name.startswith(PREFIX)
    }
    if model.head != "tokens":  # its tensors have no place among the parameters
        known = parameters(model)
        found = {name: shape for name, shape in found.items() if name in known}
    check_parameters(checkpoint.path, found, model)
    return config


def data_of(path: Path, manifest: Mapping[str, Any]) -> Identity:
    """What the run read that saved the checkpoint folder `path`. Raises CheckpointError when its manifest is wrong."""
    found = manifest.get("data", {})
    values = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(value, dict) and {"path", "content"} <= value.keys() for value in values):
        raise CheckpointError(f"{path / MANIFEST} does not say what its run read: data is {shown(found)}")
    return found
