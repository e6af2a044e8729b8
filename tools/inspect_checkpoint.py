"""Show what a checkpoint is: format, step, model, layout, sizes, and a table of its tensors.

python tools/inspect_checkpoint.py runs/demo
python tools/inspect_checkpoint.py runs/demo/checkpoints/step_00000100 --verify --no-norms
python tools/inspect_checkpoint.py checkpoint --json > checkpoint.json

Norms are Euclidean and take reading everything, a tensor at a time; --no-norms reads headers only.
"""

import argparse
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from megagpt.checkpoint import World
from megagpt.checkpoint.format import STEP, Checkpoint
from megagpt.checkpoint.loading import fill, list_candidates, verify
from megagpt.errors import CheckpointError
from megagpt.log import progress, run_tool
from megagpt.parallel.pieces import Piece

NORM_CHUNK = 1 << 24
"""Elements that are widened to float64 at a time."""


def main() -> int:
    """Run the command line."""
    arguments = parse()
    facts = inspect(arguments.checkpoint, verified=arguments.verify, norms=not arguments.no_norms)
    print(json.dumps(facts, indent=1) if arguments.json else as_text(facts))
    return 0


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint, or a run folder (the newest checkpoint in it)")
    add("--no-norms", action="store_true", help="read headers only")
    add("--verify", action="store_true", help="check the SHA-256 of every file (megagpt's checkpoints have them)")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def inspect(path: Path, verified: bool, norms: bool) -> dict[str, Any]:
    """What there is to say about a checkpoint, as plain data. Raises CheckpointError."""
    folder = newest(path)
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
    if verified:
        facts["verified"] = True
    entries = {name: stored[0].entry for name, stored in sorted(checkpoint.tensors.items())}
    tensors = {
        name: {"dtype": str(entry.torch_dtype).removeprefix("torch."), "shape": list(entry.global_shape)}
        for name, entry in entries.items()
    }
    counts = {name: prod(entry.global_shape) for name, entry in entries.items()}
    sizes = {name: counts[name] * entry.torch_dtype.itemsize for name, entry in entries.items()}
    if norms:
        with progress(sum(sizes.values()), "B", "norms") as bar:
            for name, entry in entries.items():
                tensor = torch.empty(entry.global_shape, dtype=entry.torch_dtype)
                fill(checkpoint, [Piece.whole(name, tensor)], strict=False, cast=False, world=World())
                tensors[name]["norm"] = norm(tensor)
                bar.update(sizes[name])
    return facts | {"groups": groups(sizes, counts), "tensors": tensors}


def newest(path: Path) -> Path:
    """The checkpoint itself, or the one that a run folder would go on from. Raises CheckpointError."""
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if STEP.fullmatch(path.name) or not directory.is_dir():
        return path
    names, _ = list_candidates(directory)
    if not names:
        raise CheckpointError(f"{directory} has no checkpoint")
    return directory / names[0]


def norm(tensor: torch.Tensor) -> float:
    """Euclidean norm, added up in float64."""
    parts = tensor.reshape(-1).split(NORM_CHUNK)
    return sum(float(part.double().square().sum()) for part in parts) ** 0.5


def groups(sizes: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Tensors, elements and bytes of the model and of every kind of optimizer state."""
    found: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        kind = "/".join(name.split("/")[:-1]) or "other"
        group = found.setdefault(kind, {"tensors": 0, "elements": 0, "bytes": 0})
        for key, value in (("tensors", 1), ("elements", counts[name]), ("bytes", size)):
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
