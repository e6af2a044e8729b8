"""`megagpt checkpoint convert`."""

import logging
from pathlib import Path

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

log = logging.getLogger(__name__)


@click.command("convert", cls=Command, short_help="Convert a checkpoint between formats.")
@click.argument("source", type=options.FILE)
@click.argument("target", type=options.FILE)
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Format of the new folder.")
@options.like
@click.option("--no-verify", is_flag=True, help="Do not compare the outputs of both sides.")
@click.option("--tolerance", type=float, help="Largest difference: 0.001 for logits, 1e-05 for vectors of texts.")
def command(source: Path, target: Path, to: str, like: Path | None, no_verify: bool, tolerance: float | None) -> None:
    """Convert a checkpoint between formats; the result is proven to give the same logits, or vectors of texts.

    \b
    Examples
      megagpt checkpoint convert runs/demo demo_hf --to huggingface
      megagpt checkpoint convert runs/embed demo_st --to sentence-transformers
      megagpt checkpoint convert demo_hf runs/imported --to megagpt
      megagpt checkpoint convert iter_0005000 demo_hf --to huggingface --like runs/demo/config.yaml

    SOURCE is a checkpoint, whose format is found out, or a run folder (its newest valid checkpoint). TARGET must not
    exist, and appears whole or not at all. Tensors pass one at a time, so memory is that of the largest; the proof then
    loads each side in fp32, one by one. Nothing in a checkpoint is run.
    """
    from megagpt.checkpoint.convert.convert import convert
    from megagpt.checkpoint.convert.verify import compared
    from megagpt.checkpoint.inspect import model_of

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
