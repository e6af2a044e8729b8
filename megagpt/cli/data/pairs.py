"""`megagpt data pairs`."""

from pathlib import Path
from typing import Any

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError

KINDS = ("neighbours", "code", "labelled", "scored")

neighbours = options.together(
    click.option("--min-length", type=int, default=200, show_default=True, help="neighbours: shortest passage."),
    click.option("--max-length", type=int, default=1000, show_default=True, help="neighbours: longest passage."),
    click.option(
        "--unit",
        type=click.Choice(("characters", "words")),
        default="characters",
        show_default=True,
        help="neighbours: unit of these lengths.",
    ),
    click.option("--distance", type=int, default=0, show_default=True, help="neighbours: most passages in between."),
    click.option("--per-document", type=int, default=1, show_default=True, help="neighbours: most pairs per document."),
)

code = options.together(
    options.words("--languages", metavar="LANGUAGE,...", help="code: only these [default: all with a parser]."),
    click.option(
        "--docstring",
        type=click.Choice(("first", "whole")),
        default="first",
        show_default=True,
        help="code: its first paragraph, or all of it.",
    ),
    click.option("--min-words", type=int, default=3, show_default=True, help="code: fewest words of a docstring."),
    click.option("--min-lines", type=int, default=3, show_default=True, help="code: fewest lines of a function."),
    click.option("--max-lines", type=int, default=150, show_default=True, help="code: most lines of a function."),
    click.option("--tests", is_flag=True, help="code: take tests too."),
)

labelled = options.together(
    click.option("--min-score", type=float, help="labelled: smallest score of a positive pair."),
    options.words("--qrels", metavar="NAME,...", help="labelled: splits of a BEIR folder [default: train]."),
    click.option("--max-negatives", type=int, help="labelled: most negatives of the data per pair [default: all]."),
    click.option("--bm25-negatives", type=int, default=0, show_default=True, help="Hard negatives to add to a pair."),
    click.option("--bm25-ranks", default="30-100", show_default=True, help="Ranks to draw them from, 1 for the best."),
)

selection = options.together(
    click.option("--max-pairs", type=int, help="Largest number of pairs, a random sample [default: all]."),
    click.option("--split", type=click.Choice(("train", "validation", "test")), help="Keep only this split."),
    click.option(
        "--split-shares", default="0.9,0.05,0.05", show_default=True, help="Shares of train, validation, test."
    ),
    click.option(
        "--near-duplicates",
        type=float,
        default=0.85,
        show_default=True,
        help="Smallest similarity of near-duplicates; 0 does not search for them.",
    ),
)


@click.command("pairs", cls=Command, short_help="Make pairs of texts for embeddings: text, code, labelled sets.")
@click.argument("inputs", nargs=-1, type=options.INPUT, metavar="[INPUT]...")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="See above.")
@click.option("--output", type=options.FILE, help=".jsonl or .jsonl.gz to write, with a report next to it.")
@click.option("--preview", type=int, metavar="N", help="Print N pairs and write nothing.")
@options.seed
@selection
@neighbours
@code
@labelled
@options.text_files
@options.rejection
def command(**given: Any) -> None:
    """Make pairs of texts that belong together, to train embeddings on.

    \b
    Examples
      megagpt data pairs --kind code --output pairs/code.jsonl
      megagpt data pairs corpus.jsonl.zst --kind neighbours --output pairs/text.jsonl.gz
      megagpt data pairs nli.jsonl.gz scifact/ --kind labelled --preview 5
      megagpt data pairs sts-dev.csv --kind scored --output pairs/sts.jsonl

    \b
    Kinds
      neighbours  neighbouring passages of a document, from any text
      code        docstring or leading comment, and the function without it; by default from the standard library
      labelled    queries, positives and negatives in the public shapes: triples, two columns, NLI, BEIR folders
      scored      sentence pairs with a score, such as STS, to evaluate on, not to train on
    """
    from megagpt.data.pair_sources.command import Job, run

    preview = given.pop("preview")
    if preview is None and given["output"] is None:
        raise click.UsageError("Missing option '--output' (or '--preview').")
    if preview is not None and preview < 1:
        raise ConfigError(f"--preview is {preview}; it must be at least 1")
    output: Path | None = given.pop("output") if preview is None else given.pop("output") and None
    if output is not None and not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"--output {output}: a pair file ends in .jsonl or .jsonl.gz")
    for line in run(Job(**given), output, preview):
        click.echo(line)
