"""Describes a checkpoint, of megagpt or of another framework, as plain data. Nothing in a checkpoint is executed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch

from megagpt.checkpoint import World
from megagpt.checkpoint.best import find_best
from megagpt.checkpoint.convert import convert, native
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.sentence_transformers import SCALE, describe
from megagpt.checkpoint.files import allocate
from megagpt.checkpoint.format import STEP, Checkpoint
from megagpt.checkpoint.loading import fill, list_steps, verify
from megagpt.checkpoint.saved import config_of
from megagpt.config.load import read as read_config
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from megagpt.log import progress
from megagpt.parallel.shards import Shard

FORMATS = [form for name, form in convert.FORMATS.items() if name != native.NAME]
"""Formats of other frameworks. megagpt's own format has more facts, and is described without hashing its files."""
NORM_CHUNK = 1 << 24
"""Number of elements that are converted to float64 at a time."""

Opened = tuple[dict[str, Any], Mapping[str, TensorInfo], Callable[[str], torch.Tensor]]
"""Facts about a checkpoint as a whole, its tensors, and a function that reads a tensor."""


def inspect(path: Path, verified: bool, norms: bool, like: Path | None = None) -> dict[str, Any]:
    """Describes a checkpoint as plain data: facts, groups of tensors, and tensors. Raises CheckpointError.

    verified: whether to check the hashes. norms: whether to compute the norm of every tensor. like: a config file or
    checkpoint with the model's shape, for formats that do not give it.
    """
    form = convert.detect(path, FORMATS)
    if form is None:
        facts, infos, read = open_own(chosen(path), verified)
    elif verified:
        raise CheckpointError(f"{path} is a {form.name} checkpoint, which has no hashes to verify")
    else:
        source = convert.opened(form, path, model_of(like) if like else None)
        facts, infos, read = {"path": str(path), "format": form.name, "step": source.step}, source.tensors, source.read
        facts["model"] = asdict(source.model)
        files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink())
        facts["files"] = {str(file.relative_to(path)): file.stat().st_size for file in files}
    tensors = {
        name: {"dtype": str(info.dtype).removeprefix("torch."), "shape": list(info.shape)}
        for name, info in sorted(infos.items())
    }
    if norms:
        with progress(sum(info.size for info in infos.values()), "B", "norms") as bar:
            for name, described in tensors.items():
                described["norm"] = norm(read(name))
                bar.update(infos[name].size)
    return facts | {"groups": groups(infos), "tensors": tensors}


def open_own(folder: Path, verified: bool) -> Opened:
    """Opens one of megagpt's own checkpoints. Raises CheckpointError."""
    checkpoint = verify(folder, World()) if verified else Checkpoint.open(folder)
    manifest = checkpoint.manifest
    entries = {name: stored[0].entry for name, stored in checkpoint.tensors.items()}
    infos = {name: TensorInfo(entry.global_shape, entry.torch_dtype) for name, entry in entries.items()}

    def read(name: str) -> torch.Tensor:
        tensor = allocate(infos[name].shape, infos[name].dtype, folder)
        fill(checkpoint, [Shard.whole(name, tensor)], strict=False, cast=False, world=World())
        return tensor

    facts = {
        "path": str(folder),
        "format": "megagpt",
        "step": manifest["step"],
        **{key: manifest[key] for key in ("run", "world_size", "layout", "versions") if key in manifest},
        "model": asdict(config_of(folder, manifest).model) if "config" in manifest else {},
        "files": {name: info.size for name, info in checkpoint.files().items()},
    }
    if facts["model"].get("head") == "embedding":
        config = config_of(folder, manifest)
        scale = read(SCALE).item() if SCALE in infos else None
        facts["embed"] = describe(config.embed, config.model, scale)
    return facts | ({"verified": True} if verified else {}), infos, read


def model_of(path: Path) -> ModelConfig:
    """The model in a config file or in one of megagpt's checkpoints. Raises ConfigError or CheckpointError."""
    if path.is_file():
        return read_config(path).model
    return config_of(chosen(path)).model


def chosen(path: Path) -> Path:
    """`path` if it is a checkpoint, else the best or newest checkpoint of a run folder. Raises CheckpointError."""
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if STEP.fullmatch(path.name):
        return path
    if best := find_best(directory):
        return best
    names = list_steps(directory)[0] if directory.is_dir() else []
    if not names:
        known = ", ".join(["megagpt", *(form.name for form in FORMATS)])
        raise CheckpointError(f"{path} is not a checkpoint of a known format ({known}), nor a run that has saved one")
    return directory / names[0]


def norm(tensor: torch.Tensor) -> float:
    """Euclidean norm, summed in float64."""
    parts = tensor.reshape(-1).split(NORM_CHUNK)
    return sum(float(part.double().square().sum()) for part in parts) ** 0.5


def groups(infos: Mapping[str, TensorInfo]) -> dict[str, dict[str, int]]:
    """Numbers of tensors, elements and bytes of the model and of each kind of optimizer state."""
    found: dict[str, dict[str, int]] = {}
    for name, info in sorted(infos.items()):
        group = found.setdefault(name.rpartition("/")[0] or "other", {"tensors": 0, "elements": 0, "bytes": 0})
        for key, value in (("tensors", 1), ("elements", prod(info.shape)), ("bytes", info.size)):
            group[key] += value
    return found
