"""`megagpt checkpoint convert`."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megagpt.cli import options
from megagpt.cli.group import Command

FORMATS = (
    "megagpt",
    "sentence-transformers",
    "huggingface",
    "megatron",
    "megatron-dist",
    "deepspeed-universal",
    "deepspeed",
)

if TYPE_CHECKING:  # it imports PyTorch
    from megagpt.checkpoint.convert.dry_run import DryRun

FILES_SHOWN = 8

log = logging.getLogger(__name__)


@click.command("convert", cls=Command, short_help="Convert a checkpoint between formats.")
@click.argument("source", type=options.FILE)
@click.argument("target", type=options.FILE)
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Format of the new folder.")
@options.like
@click.option("--no-verify", is_flag=True, help="Do not compare the outputs of both sides.")
@click.option("--tolerance", type=float, help="Largest difference: 0.001 for logits, 1e-05 for vectors of texts.")
@click.option("--dry-run", is_flag=True, help="Report the work without doing it, from headers and config files.")
@click.pass_context
def command(
    context: click.Context,
    source: Path,
    target: Path,
    to: str,
    like: Path | None,
    no_verify: bool,
    tolerance: float | None,
    dry_run: bool,
) -> None:
    """Convert a checkpoint between formats; the result is proven to give the same logits, or vectors of texts.

    \b
    Examples
      megagpt checkpoint convert runs/demo demo_hf --to huggingface
      megagpt checkpoint convert runs/embed demo_st --to sentence-transformers
      megagpt checkpoint convert demo_hf runs/imported --to megagpt
      megagpt checkpoint convert iter_0005000 demo_hf --to huggingface --like runs/demo/config.yaml
      megagpt checkpoint convert --dry-run downloaded runs/imported --to megagpt

    SOURCE is a checkpoint, whose format is detected, or a run folder (its newest valid checkpoint). TARGET must not
    exist, and is written atomically. Tensors are converted one at a time, so memory holds only the largest; the proof
    then loads each side in fp32, one after the other. No code in a checkpoint is run, except a chat template in Jinja's
    sandbox.

    --dry-run reads and writes no weights, and needs none: a folder with only config.json is enough. It reports what
    would be read, renamed, refused and written, and the memory and time needed. Its exit code is 1 if something is
    refused.
    """
    from megagpt.checkpoint.convert.convert import convert
    from megagpt.checkpoint.convert.verify import compared
    from megagpt.checkpoint.inspect import model_of

    if dry_run:
        from megagpt.checkpoint.convert.dry_run import dry_run as plan_of

        plan = plan_of(source, target, to, model_of(like) if like else None)
        click.echo("\n".join(lines(plan)))
        context.exit(int(bool(plan.refused)))
    result = convert(source, target, to, model_of(like) if like else None, not no_verify, tolerance)
    if result.dropped:
        log.warning("%s has no place for: %s (left out)", to, ", ".join(result.dropped))
    if result.source.tokenizer is None and to in ("megagpt", "huggingface"):
        log.warning("%s has no tokenizer.json: copy the right one into %s", source, target)
    if result.difference is None:
        log.warning("not verified: --no-verify")
    else:
        what = compared(result.source.model)
        log.info("verified: the %s of both sides differ by at most %.2g", what, result.difference)
    log.info("%s (%s) is %s (%s)", source, result.source.format, target, to)


def lines(plan: "DryRun") -> Iterator[str]:
    """A dry run for people."""
    if plan.model is not None:
        of = f", {plan.family}" if plan.family else ""
        yield f"model       {plan.parameters:,} parameters, {plan.model.num_layers} layers{of}"
        dtypes = ", ".join(f"{count} of {dtype}" for dtype, count in plan.dtypes.items())
        yield f"read        {plan.format}: {plan.tensors:,} tensors, {_size(plan.bytes)}, which become {dtypes}"
        yield from _files(plan.read)
        for row in plan.renamed:
            theirs, ours = f"{row.theirs} {_shape(row.their_shape)}", f"{row.ours} {_shape(row.our_shape)}"
            yield f"renamed     {row.count:>5} x {theirs} = {ours}"
        if plan.dropped:
            yield f"left out    {', '.join(plan.dropped)}, for which {plan.to} has no place"
        yield f"written     {plan.to}: {_size(plan.written_bytes)}, where {_size(plan.free)} are free"
        yield from _files(plan.written)
        proof = f"the proof, which --no-verify leaves out: {_size(plan.proof_memory)}"
        yield f"memory      about {_size(plan.memory)}; {proof}"
        yield f"time        about {plan.cpu_seconds:,.0f} CPU seconds, by docs/conversion.md, and those of the proof"
    for note in plan.notes:
        yield f"note        {note}"
    for reason in plan.refused:
        yield f"refused     {reason}"


def _files(sizes: dict[str, int]) -> Iterator[str]:
    for name, size in list(sizes.items())[:FILES_SHOWN]:
        yield f"            {name} {_size(size)}"
    if len(sizes) > FILES_SHOWN:
        yield f"            and {len(sizes) - FILES_SHOWN} more files"


def _size(count: int) -> str:
    """Bytes for people."""
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= unit), (1, "B")
    )
    return f"{count / unit:.2f} {name}" if unit > 1 else f"{count} B"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + " x ".join(map(str, shape)) + "]"
