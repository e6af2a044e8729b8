"""`megagpt checkpoint inspect`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from megagpt.cli import options
from megagpt.cli.group import Command


@click.command("inspect", cls=Command, short_help="Show what a checkpoint is and what it holds.")
@click.argument("checkpoint", type=options.FILE)
@click.option("--no-norms", is_flag=True, help="Read headers only.")
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every file (megagpt's checkpoints have them).")
@options.like
@options.as_json
def command(checkpoint: Path, no_norms: bool, verify: bool, like: Path | None, as_json: bool) -> None:
    """Show what a checkpoint is: format, step, model, layout, sizes, and a table of its tensors.

    \b
    Examples
      megagpt checkpoint inspect runs/demo
      megagpt checkpoint inspect runs/demo/checkpoints/step_00000100 --verify --no-norms
      megagpt checkpoint inspect checkpoint --json > checkpoint.json

    CHECKPOINT is a checkpoint, or a run folder (the best checkpoint in it, or else the newest). Its format is detected.
    Norms are Euclidean and need all tensors to be read, one at a time; --no-norms reads only headers. No code in a
    checkpoint is run.
    """
    from megagpt.checkpoint.inspect import inspect

    facts = inspect(checkpoint, verify, not no_norms, like)
    click.echo(json.dumps(facts, indent=1) if as_json else as_text(facts))


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
