"""`megagpt data instructions`."""

from collections import Counter
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


@click.command("instructions", cls=Command, short_help="Make demonstrations, ranked answers and prompts.")
@click.option("--output-dir", type=options.FILE, required=True, help="Folder to write into.")
@click.option("--count", type=int, default=10_000, show_default=True, help="Records of each file.")
@options.words("--kinds", metavar="KIND,...", help="Some of the kinds above [default: all].")
@options.seed
@click.option(
    "--split",
    type=click.Choice(("train", "validation")),
    help="Only of 95% of the prompts, or of the other 5%.",
)
def command(output_dir: Path, count: int, kinds: tuple[str, ...] | None, seed: int, split: str | None) -> None:
    """Make a synthetic instruction set: demonstrations, ranked answers, and prompts whose answers a program can check.

    \b
    Examples
      megagpt data instructions --count 20000 --output-dir runs/chatgpt/data
      megagpt data instructions --kinds copy,reverse,first,last --count 5000 --seed 7 --output-dir data
      megagpt data instructions --split validation --count 300 --output-dir data/held_out

    It writes conversations.jsonl (for stage sft), rankings.jsonl (for stage reward) and prompts.jsonl (for stage ppo),
    each with different instructions. The same arguments give the same files.

    \b
    Kinds
      repeat, copy, reverse, capitals, alphabetical, first, last, count, add, larger, recall, some_words, beginning,
      follow_up, system
    """
    from megagpt.data.instruction_files import split_and_write
    from megagpt.data.instructions import KINDS, TURNS, make_instructions

    if count < 1:
        raise ConfigError(f"--count is {count}; it must be at least 1")
    made = list(make_instructions(3 * count, kinds=kinds or (*KINDS, *TURNS), seed=seed, split=split))
    for path, records in split_and_write(made, output_dir, seed).items():
        click.echo(f"{path}: {records} records")
    counts = Counter(instruction.kind for instruction in made)
    click.echo(", ".join(f"{count} {kind}" for kind, count in counts.items()))
