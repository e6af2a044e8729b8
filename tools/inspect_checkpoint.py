"""Show what a checkpoint is: format, step, model, layout, sizes, and a table of its tensors.

python tools/inspect_checkpoint.py runs/demo
python tools/inspect_checkpoint.py runs/demo/checkpoints/step_00000100 --verify --no-norms
python tools/inspect_checkpoint.py checkpoint --json > checkpoint.json

The format is found out. Norms are Euclidean and take reading everything, a tensor at a time; --no-norms reads headers
only. Nothing in a checkpoint is run.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch

from megagpt.checkpoint import World, read_manifest
from megagpt.checkpoint.best import find_best
from megagpt.checkpoint.convert import convert, native
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.format import STEP, Checkpoint
from megagpt.checkpoint.loading import fill, list_steps, verify
from megagpt.config.load import from_dict
from megagpt.config.load import read as read_config
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from megagpt.log import progress, run_tool
from megagpt.parallel.shards import Shard

FORMATS = [form for name, form in convert.FORMATS.items() if name != native.NAME]
"""Formats of others: megagpt's own says more of itself, and need not be hashed to be looked at."""
NORM_CHUNK = 1 << 24
"""Elements that are widened to float64 at a time."""

Opened = tuple[dict[str, Any], Mapping[str, TensorInfo], Callable[[str], torch.Tensor]]
"""What is said of a checkpoint as a whole, its tensors, and what reads one."""


def main() -> int:
    """Run the command line."""
    arguments = parse()
    facts = inspect(arguments.checkpoint, arguments.verify, not arguments.no_norms, arguments.like)
    print(json.dumps(facts, indent=1) if arguments.json else as_text(facts))
    return 0


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint, or a run folder (the best checkpoint in it, or else the newest)")
    add("--no-norms", action="store_true", help="read headers only")
    add("--verify", action="store_true", help="check the SHA-256 of every file (megagpt's checkpoints have them)")
    add(
        "--like", type=Path, help="config.yaml or checkpoint of megagpt with the model's shape, where a format has none"
    )
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def inspect(path: Path, verified: bool, norms: bool, like: Path | None = None) -> dict[str, Any]:
    """What there is to say about a checkpoint, as plain data. Raises CheckpointError."""
    form = next((form for form in FORMATS if form.detect(path)), None)
    if form is None:
        facts, infos, read = open_own(chosen(path), verified)
    elif verified:
        raise CheckpointError(f"{path} is a {form.name} checkpoint, which has no hashes to verify")
    else:
        source = form.open_source(path, model_of(like) if like else None)
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
    """One of megagpt's own checkpoints. Raises CheckpointError."""
    checkpoint = verify(folder, World()) if verified else Checkpoint.open(folder)
    manifest = checkpoint.manifest
    facts = {
        "path": str(folder),
        "format": "megagpt",
        "step": manifest["step"],
        **{key: manifest[key] for key in ("run", "world_size", "layout", "versions") if key in manifest},
        "model": manifest.get("config", {}).get("model", {}),
        "files": {name: info.size for name, info in checkpoint.files().items()},
    }
    entries = {name: stored[0].entry for name, stored in checkpoint.tensors.items()}
    infos = {name: TensorInfo(entry.global_shape, entry.torch_dtype) for name, entry in entries.items()}

    def read(name: str) -> torch.Tensor:
        tensor = torch.empty(infos[name].shape, dtype=infos[name].dtype)
        fill(checkpoint, [Shard.whole(name, tensor)], strict=False, cast=False, world=World())
        return tensor

    return facts | ({"verified": True} if verified else {}), infos, read


def model_of(path: Path) -> ModelConfig:
    """The model of a config file or of one of megagpt's checkpoints. Raises ConfigError or CheckpointError."""
    if path.is_file():
        return read_config(path).model
    return from_dict(read_manifest(chosen(path))["config"]).model


def chosen(path: Path) -> Path:
    """The checkpoint itself, or the one that other tools take from a run folder. Raises CheckpointError."""
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
    """Euclidean norm, added up in float64."""
    parts = tensor.reshape(-1).split(NORM_CHUNK)
    return sum(float(part.double().square().sum()) for part in parts) ** 0.5


def groups(infos: Mapping[str, TensorInfo]) -> dict[str, dict[str, int]]:
    """Tensors, elements and bytes of the model and of every kind of optimizer state."""
    found: dict[str, dict[str, int]] = {}
    for name, info in sorted(infos.items()):
        group = found.setdefault(name.rpartition("/")[0] or "other", {"tensors": 0, "elements": 0, "bytes": 0})
        for key, value in (("tensors", 1), ("elements", prod(info.shape)), ("bytes", info.size)):
            group[key] += value
    return found


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts for people: a line each, and a table of the tensors."""
    lines = []
    for key, value in facts.items():
        if key in ("groups", "tensors", "files"):
            continue
        if isinstance(value, Mapping):
            value = " ".join(f"{name}={part}" for name, part in value.items() if part is not None)
        lines.append(f"{key:<12}{value}")
    lines += [f"{'file':<12}{name:<24}{size:>18,} bytes" for name, size in facts["files"].items()]
    for name, group in facts["groups"].items():
        lines.append(
            f"{'holds':<12}{name:<24}{group['bytes']:>18,} bytes in {group['tensors']:,} tensors "
            f"of {group['elements']:,} elements"
        )
    width = max((len(name) for name in facts["tensors"]), default=0)
    lines.append("")
    for name, tensor in facts["tensors"].items():
        shape = " x ".join(f"{size:,}" for size in tensor["shape"]) or "one number"
        value = f"{tensor['norm']:.6g}" if "norm" in tensor else ""
        lines.append(f"{name:<{width}}  {tensor['dtype']:<9} {shape:>20}  {value}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    run_tool(main)
