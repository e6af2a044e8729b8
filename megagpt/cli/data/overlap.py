"""`megagpt data overlap`."""

import re
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


@click.command("overlap", cls=Command, short_help="Find the examples of evaluations that a corpus contains.")
@click.argument("evaluations", nargs=-1, type=options.INPUT, required=True, metavar="EVALUATION...")
@options.inputs("--corpus", "inputs", help="Text")
@click.option("--output", type=options.FILE, required=True, metavar="FOLDER", help="Folder for the clean examples.")
@click.option(
    "--ngram",
    multiple=True,
    metavar="FILE=N,...",
    help="Words in a run [default: from the examples' lengths, 8 to 13].",
)
@options.text_files
@options.rejection
def command(
    evaluations: tuple[str, ...],
    inputs: tuple[str, ...],
    output: Path,
    ngram: tuple[str, ...],
    key: str,
    patterns: tuple[str, ...],
    max_rejected: int,
    max_record_mb: float,
) -> None:
    """Find the examples of evaluations that share a run of words with a corpus, and write those that do not.

    \b
    Example
      megagpt data overlap lambada.jsonl piqa.jsonl --corpus data/web --corpus books.jsonl --output data/clean

    Evaluation files are .jsonl, .json, .csv, .tsv, .txt (also .gz) and .parquet. FOLDER gets FILE.clean.jsonl for each,
    and clean.json with the clean share. The corpus stays unchanged; `megagpt data corpus` can cut evaluations out of
    one. docs/decontamination.md explains the rule.
    """
    from megagpt.data.corpus.text.decontamination.measuring import read_evaluations
    from megagpt.data.corpus.text.quality.texts import Texts
    from megagpt.data.readers import FOLDER_PATTERNS

    sets = read_evaluations(evaluations, _lengths(ngram))
    found = sets.nothing_found()
    for text in Texts(inputs, key, patterns or FOLDER_PATTERNS, max_rejected, max_record_mb):
        sets.look(text, found)
    click.echo(f"{'evaluation':40} {'N':>3} {'records':>9} {'short':>7} {'clean':>9} {'share':>8}")
    for name, one in sets.write(found, output)["sets"].items():
        counts = f"{one['records']:9,} {one['short']:7,} {one['clean']:9,} {one['clean_share']:8.2%}"
        click.echo(f"{name:40} {one['ngram']:3} {counts}")
    click.echo(f"{output}/clean.json")


def _lengths(given: tuple[str, ...]) -> dict[str, int]:
    """{file: N} from options FILE=N,FILE=N; file names may have commas, spaces and `=`. Raises ConfigError."""
    lengths: dict[str, int] = {}
    for text in given:
        found = list(re.finditer(r"(.+?)=(\d+)(?:[,\s]+|$)", text))
        if "".join(match[0] for match in found) != text or not all(1 <= int(match[2]) <= 64 for match in found):
            raise ConfigError(f"--ngram {text}: give FILE=N with N from 1 to 64, such as anagrams.jsonl=2")
        lengths |= {match[1]: int(match[2]) for match in found}
    return lengths
