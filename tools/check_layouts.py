"""Prove that every layout on up to N ranks trains as one rank does: the same loss and gradient norm at every step.

    python tools/check_layouts.py
    python tools/check_layouts.py --ranks 2 --only PP2
    python tools/check_layouts.py --ranks 4 --steps 10 experiment=demo
    python tools/check_layouts.py --stages --output docs/benchmarks/layouts_stages_cpu.json

Overrides, as for `python -m megagpt`, name the configuration to check; without any, two tiny models are checked: one
like GPT-3 and one with the modern options. Every combination of tensor, sequence, pipeline, interleaved and data
parallelism is tried, with and without the distributed optimizer, and, where DeepSpeed is installed, its ZeRO stages;
those that the rules refuse are named.
Where each kind of parallelism is used to the full, recompute, overlapped reduction, larger micro-batches and bf16 are
tried as well. All start from the same weights and read the same batches, at the constant learning rate `optim.lr`,
without dropout and without a batch ramp. Batches come from the configured corpora where they exist; else they are
random tokens, a random part of which counts in the loss.

With --stages, what the stages sft, reward and ppo learn takes the place of next tokens: packed conversations, ranked
answers, and episodes with text beside them, all random.

Exit code 1 names the layouts beyond the tolerance. --write-docs puts the table into docs/benchmarks/layouts.md.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from stage_workloads import demonstrations, episodes, rankings

from megagpt import log as logs
from megagpt.config.load import load
from megagpt.evaluate.layout_parity import REFERENCES, Row, cases, compare, has_data, measure, text

log = logging.getLogger("megagpt.tools.check_layouts")

TINY = [
    "model=tiny",
    "model.sequence_length=32",
    "optim=demo",
    "optim.lr=1e-3",
    "optim.global_batch_size=4",
    "data.corpora=[]",
]
MODERN = ["model=demo_modern", "model.hidden_size=64", "model.vocab_size=512"]
DEFAULTS = {"GPT-3": TINY, "Modern": [*TINY, *MODERN]}
"""Models that are checked when no override is given, and their overrides."""

START = ["checkpoint.load=none"]
EPISODES = ["ppo.max_prompt_tokens=16", "ppo.max_new_tokens=16", "ppo.rollout_batch_size=4", "ppo.reward=checker"]
STAGES = {
    "Demonstrations": (demonstrations, [*TINY, *START, "stage=sft"]),
    "Ranked answers": (rankings, [*TINY, *START, "stage=reward"]),
    "Episodes and text": (episodes, [*TINY, *START, *EPISODES, "stage=ppo", "data.corpora=[{path: none}]"]),
}
"""What is checked with --stages."""

DOCS = Path(__file__).parent.parent / "docs"
MARKERS = ("<!-- layouts: made by tools/check_layouts.py -->", "<!-- layouts: end -->")


def table(rows: list[Row]) -> str:
    """The rows of one model as Markdown."""
    lines = ["| layout | ranks | loss | grad norm | ms/step | MiB/rank |", "| --- " + "| ---: " * 5 + "|"]
    for row in rows:
        name = row.layout if row.equal else f"**{row.layout}: NOT EQUAL**"
        differences = f"{row.loss_difference:.1e} | {row.grad_norm_difference:.1e}"
        lines.append(f"| {name} | {row.ranks} | {differences} | {row.milliseconds:.0f} | {row.memory_mib:.0f} |")
    return "\n".join(lines)


def document(rows: list[Row], refused: dict[str, dict[str, list[str]]]) -> str:
    """A table for each model, and what was refused, as Markdown."""
    parts = []
    for model in dict.fromkeys(row.model for row in rows):
        parts.append(f"**{model}**\n\n" + table([row for row in rows if row.model == model]))
    lines = []
    for reason, by_model in refused.items():
        names = [f"{', '.join(layouts)} ({model})" for model, layouts in by_model.items()]
        lines.append(f"- {'; '.join(names)}: {reason}")
    if lines:
        parts.append("Refused:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def summary(rows: list[Row]) -> str:
    """A line a model as Markdown: how many layouts there are, and the largest differences among them."""
    lines = ["| learnt from | layouts | loss | grad norm | loss in bf16 |", "| --- " + "| ---: " * 4 + "|"]
    for model in dict.fromkeys(row.model for row in rows):
        exact, rough = ([row for row in rows if row.model == model and row.holds_grad_norm == held] for held in (1, 0))
        worst = [max(row.loss_difference for row in exact), max(row.grad_norm_difference for row in exact)]
        worst.append(max((row.loss_difference for row in rough), default=math.nan))
        lines.append(f"| {model} | {len(exact) + len(rough)} | " + " | ".join(f"{value:.1e}" for value in worst) + " |")
    return "\n".join(lines)


# The command line


def about(args: argparse.Namespace, gpus: bool) -> dict[str, Any]:
    """What was measured on what, and with what."""
    cpus = Path("/proc/cpuinfo")
    names = [line.split(": ", 1)[1] for line in cpus.read_text().splitlines() if line.startswith("model name")]
    return {
        "command": shlex.join(["python", "tools/check_layouts.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if gpus else names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "megatron-core", "deepspeed") if _has(name)},
        **{name: getattr(args, name) for name in ("steps", "tolerance", "bf16_tolerance")},
    }


def _has(package: str) -> bool:
    return bool(importlib.util.find_spec(package.replace("-", ".")))


def write_docs(text: str, result: dict[str, Any], device: str) -> None:
    """Put the tables between the markers of docs/benchmarks/layouts.md, and the figures into docs/benchmarks."""
    page = DOCS / "benchmarks" / "layouts.md"
    before, rest = page.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    page.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", encoding="utf-8")
    _write(DOCS / "benchmarks" / f"layouts_{device}.json", result)


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="group=option or key=value")
    parser.add_argument("--ranks", type=int, default=4, help="largest number of ranks (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of training (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="relative, of loss and gradient norm (default: %(default)s)"
    )
    parser.add_argument(
        "--bf16-tolerance", type=float, default=1e-2, help="relative, of the loss in bf16 (default: %(default)s)"
    )
    parser.add_argument("--stages", action="store_true", help="check what the stages after pretraining learn")
    parser.add_argument("--only", default="", metavar="TEXT", help="check only layouts whose names contain TEXT")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--write-docs", action="store_true", help="put the table into the docs when all are equal")
    args = parser.parse_args()
    if min(args.ranks, args.steps) < 1:
        parser.error("--ranks and --steps must be at least 1")
    if args.stages and (args.overrides or args.write_docs):
        parser.error("--stages has models of its own, and a table of its own: no overrides, no --write-docs")
    return args


def main() -> int:
    """Measure, compare, print, write."""
    args = parse()
    given = {"Model": args.overrides} if args.overrides else DEFAULTS
    work = STAGES if args.stages else {name: (text, overrides) for name, overrides in given.items()}
    gpus = torch.cuda.device_count() >= args.ranks
    found, refused = [], {}
    for name, (workload, overrides) in work.items():
        config = load(overrides)
        log.info("%s: %s", name, "the configured corpora" if has_data(config) else "random tokens")
        more, unfit = cases({name: config}, args.ranks, workload)
        found += more
        for reason, layouts in unfit.items():
            refused.setdefault(reason, {}).update(layouts)
    todo = [case for case in found if args.only in case.layout or case.layout in REFERENCES]
    rows = compare(measure(todo, args.steps, gpus), args.tolerance, args.bf16_tolerance)
    page = summary(rows) if args.stages else document(rows, refused)
    print(page)
    result = about(args, gpus) | {"refused": refused, "layouts": [dataclasses.asdict(row) for row in rows]}
    if args.output:
        _write(args.output, result)
    wrong = [row for row in rows if not row.equal]
    for row in wrong:
        log.error(
            "%s, %s on %d ranks differs from one rank by %.1e in the loss and %.1e in the gradient norm (tolerance %g)",
            row.model,
            row.layout,
            row.ranks,
            row.loss_difference,
            row.grad_norm_difference,
            row.tolerance,
        )
    if args.write_docs and not wrong:
        write_docs(page, result, "gpu" if gpus else "cpu")
    return bool(wrong)


if __name__ == "__main__":
    logs.run_tool(main)
