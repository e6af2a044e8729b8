"""`megagpt data rules`."""

import json
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


@click.command("rules", cls=Command, short_help="Make documents whose rule follows only from their examples.")
@click.option("--output", type=options.FILE, required=True, help=".jsonl to write.")
@click.option("--count", type=int, default=10_000, show_default=True, help="Documents or questions, the kinds in turn.")
@options.words("--kinds", metavar="KIND,...", help="Some of the kinds below [default: all of the split].")
@options.seed
@click.option(
    "--split",
    type=click.Choice(("train", "test")),
    default="train",
    show_default=True,
    help="Documents to train on, or questions about held-out rules.",
)
@click.option("--shuffled", is_flag=True, help="Shuffle the examples of a kind over its documents: none has a rule.")
def command(output: Path, count: int, kinds: tuple[str, ...] | None, seed: int, split: str, shuffled: bool) -> None:
    """Make documents with examples of one rule each, or questions about rules that no document has.

    \b
    Examples
      megagpt data rules --count 100000 --output rules.jsonl
      megagpt data rules --count 100000 --shuffled --output shuffled.jsonl
      megagpt data rules --count 1000 --split test --output held_out/rules.jsonl

    A document is {"text", "kind"}. A question is {"id", "kind", "input", "answer", "choices", "examples"}: its examples
    are of the same rule, and the first K of them are its demonstrations. docs/in_context_learning.md describes the
    kinds.

    \b
    Kinds
      words, mapping, category, majority, pattern, remainder; only for questions: cycle, phrases
    """
    from megagpt.data.files import write_atomic
    from megagpt.data.rules import documents, questions

    if count < 1:
        raise ConfigError(f"--count is {count}; it must be at least 1")
    if shuffled and split == "test":
        raise ConfigError("--shuffled is for documents to train on: leave it out, or take --split train")
    make = questions(count, seed, kinds) if split == "test" else documents(count, seed, kinds, shuffled=shuffled)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in make]
    write_atomic(output, "".join(lines).encode())
    click.echo(f"{output}: {len(lines)} {'questions' if split == 'test' else 'documents'}")
