"""Predict the conversion of a 7B of every family from its config alone, and show how right such predictions are.

    python tools/conversion_families.py --write-docs                                     # the tables of the page
    python tools/conversion_families.py --output docs/benchmarks/convert_families.json   # convert and compare

The first table is what `megagpt checkpoint convert --dry-run` says of a folder with config.json alone, in bf16, of each
family's published model that is nearest to 7 billion parameters. With --output models of random weights in bf16 become
folders for transformers and come back, each in a process of its own; it needs 10 GB of disk and two minutes of a CPU.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_convert import measure
from measured_on import measured_on

from megagpt.checkpoint.convert import hugging_face_config as about
from megagpt.checkpoint.convert.common import parameters
from megagpt.checkpoint.convert.dry_run import DryRun, dry_run
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from megagpt.log import run_tool

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "tests/checkpoint/convert/published_configs.json"
MEASURED = ROOT / "docs/benchmarks/convert_families.json"
PAGE = ROOT / "docs/benchmarks/conversion.md"
MARKERS = ("<!-- families: made by tools/conversion_families.py -->", "<!-- families: end -->")
SIZE = 7e9
COMPARED = ("Gemma-3-270M", "SmolLM2-360M", "Pythia-410M", "Pythia-1B")
"""Published models that are converted with random weights."""
WAYS = {"back": "to megagpt", "to_huggingface": "to huggingface"}


class Prediction(NamedTuple):
    """What dry runs say of one published config."""

    name: str
    to_megagpt: DryRun
    to_hugging_face: DryRun


def main() -> int:
    """Predict or measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="convert, compare, write the figures as JSON")
    args = parser.parse_args()
    if args.output:
        found = measured_on("torch", "safetensors") | {"models": {name: compared(name) for name in COMPARED}}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    text = markdown()
    print(text)
    if args.write_docs:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        PAGE.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", encoding="utf-8")
    return 0


def config_of(name: str) -> dict[str, Any]:
    """The config of a published model."""
    return next(models[name] for models in configs().values() if name in models)


def configs() -> dict[str, dict[str, dict[str, Any]]]:
    """Published configs by family and name."""
    families = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {family: {name: one["config"] for name, one in models.items()} for family, models in families.items()}


def read(config: dict[str, Any]) -> ModelConfig:
    """The model that a config describes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return about.read(path)[1]


def predict(name: str, config: dict[str, Any]) -> Prediction:
    """Both ways from a config alone. Raises CheckpointError where one is refused for more than a small disk."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}), encoding="utf-8")
        plans = [dry_run(Path(folder), Path(folder) / "new", to) for to in ("megagpt", "huggingface")]
    for plan in plans:
        if reasons := [reason for reason in plan.refused if not reason.endswith("are free")]:
            raise CheckpointError(f"{name}: {reasons[0]}")
    return Prediction(name, *plans)


@cache
def nearest() -> list[Prediction]:
    """Of every family the published model that is nearest to 7 billion parameters, by ratio."""
    found = []
    for models in configs().values():
        sizes = {name: sum(map(math.prod, parameters(read(config)).values())) for name, config in models.items()}
        name = min(sizes, key=lambda one: abs(math.log(sizes[one] / SIZE)))
        found.append(predict(name, models[name]))
    return found


def compared(name: str) -> dict[str, Any]:
    """Converts a published model with random weights in bf16 both ways."""
    with tempfile.TemporaryDirectory() as folder:
        return measure(read(config_of(name)), Path(folder), torch.bfloat16)


def predicted_rows() -> Iterator[list[str]]:
    """The table of all families."""
    for name, there, back in nearest():
        yield [
            name,
            f"`{there.family}`",
            f"{there.parameters / 1e9:.2f} billion",
            f"{there.bytes / 1e9:.2f} GB",
            f"{there.written_bytes / 1e9:.2f} GB in {len(there.written)}",
            f"{back.written_bytes / 1e9:.2f} GB in {len(back.written)}",
            f"{there.memory / 2**20:,.0f} MiB",
            f"{there.proof_memory / 2**30:.0f} GiB",
            f"{there.cpu_seconds:.0f}",
        ]


def measured_rows() -> Iterator[list[str]]:
    """The table of what was measured beside what was predicted."""
    for name, found in json.loads(MEASURED.read_text(encoding="utf-8"))["models"].items():
        plan = predict(name, config_of(name)).to_megagpt
        for way, label in WAYS.items():
            one = found[way]
            yield [
                name,
                label,
                f"{found['megabytes']:,.0f} MB",
                f"{one['predicted_peak_mib']:.0f} MiB",
                f"{one['peak_mib']:.0f} MiB",
                f"{plan.cpu_seconds:.1f}",
                f"{one['cpu_seconds']:.1f}",
            ]


TABLES = {
    "model, in bf16 | class | parameters | read | files for megagpt | files for transformers | memory"
    " | memory of the proof | CPU seconds": predicted_rows,
    "random weights | way | size | memory, predicted | measured | CPU seconds, predicted | measured": measured_rows,
}
"""The tables by their heads."""


def markdown() -> str:
    """Both tables."""
    texts = []
    for head, rows in TABLES.items():
        labels = 2
        aligned = ["---"] * labels + ["---:"] * (head.count(" | ") + 1 - labels)
        lines = [head, " | ".join(aligned), *(" | ".join(cells) for cells in rows())]
        texts.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(texts)


if __name__ == "__main__":
    run_tool(main)
