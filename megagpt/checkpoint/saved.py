"""Reads the configuration and the data of the run that saved a checkpoint. The file is untrusted, so it is checked."""

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
    """The configuration of the run that saved the checkpoint folder `path`.

    manifest: result of `read_manifest`; None reads it. Raises CheckpointError when the manifest has no configuration or
    an invalid one.
    """
    manifest = read_manifest(path) if manifest is None else manifest
    try:
        return from_saved(manifest["config"])
    except KeyError:
        raise CheckpointError(f"{path / MANIFEST} has no config, so its model is unknown") from None
    except (AttributeError, ConfigError, RecursionError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} has a config that is not valid: {error}") from None


def buildable_config(saved: Path | Checkpoint) -> Config:
    """`config_of` a checkpoint, after a check that its model can be built and matches the stored tensors.

    Call it before building a model: a wrong number in an untrusted file could cost hours or all memory. Raises
    CheckpointError.
    """
    checkpoint = saved if isinstance(saved, Checkpoint) else Checkpoint.open(saved)
    config = config_of(checkpoint.path, checkpoint.manifest)
    model = checked_model(config.model, checkpoint.path / MANIFEST)
    found = {
        name.removeprefix(PREFIX): stored[0].entry.global_shape
        for name, stored in checkpoint.tensors.items()
        if name.startswith(PREFIX)
    }
    if model.head != "tokens":  # `parameters` does not list the head's tensors
        known = parameters(model)
        found = {name: shape for name, shape in found.items() if name in known}
    check_parameters(checkpoint.path, found, model)
    return config


def data_of(path: Path, manifest: Mapping[str, Any]) -> Identity:
    """The data that the run of a checkpoint folder `path` read. Raises CheckpointError when its manifest is wrong."""
    found = manifest.get("data", {})
    values = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(value, dict) and {"path", "content"} <= value.keys() for value in values):
        raise CheckpointError(f"{path / MANIFEST} does not name the data of its run: data is {shown(found)}")
    return found
