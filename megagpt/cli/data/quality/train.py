"""`megagpt data quality train`."""

from pathlib import Path
from typing import Any

import click

from megagpt.cli import options
from megagpt.cli.group import Command


@click.command("train", cls=Command, short_help="Train a classifier from good and bad documents.")
@options.inputs("--good", help="Curated documents")
@options.inputs("--bad", help="Documents of a crawl")
@click.option("--output", type=options.FILE, required=True, metavar="FOLDER", help="Folder for the classifier.")
@click.option(
    "--method",
    type=click.Choice(("hashing", "fasttext")),
    default="hashing",
    show_default=True,
    help="GPT-3's hashed words and logistic regression, or DCLM's fastText.",
)
@click.option("--held-out", type=float, default=0.1, show_default=True, help="Share of the documents to measure on.")
@click.option("--documents", type=int, metavar="N", help="Most documents of each class, a random choice.")
@click.option("--l2", type=float, default=1.0, show_default=True, help="Regularisation of hashing.")
@click.option("--balanced", is_flag=True, help="hashing: both classes count the same, whatever their sizes.")
@click.option("--buckets", type=int, metavar="N", help="fasttext: rows for bigrams [default: 262144].")
@click.option("--dimension", type=int, metavar="N", help="fasttext: size of the vectors [default: 100].")
@click.option("--epochs", type=int, metavar="N", help="fasttext: a few hundred documents need 50 [default: 5].")
@options.seed
@options.text_files
@options.rejection
def command(
    good: tuple[str, ...],
    bad: tuple[str, ...],
    output: Path,
    buckets: int | None,
    dimension: int | None,
    epochs: int | None,
    key: str,
    patterns: tuple[str, ...],
    max_rejected: int,
    max_record_mb: float,
    **settings: Any,
) -> None:
    """Train a classifier that separates documents like the good ones from documents like the bad ones.

    \b
    Examples
      megagpt data quality train --good wikipedia.jsonl --good books/ --bad crawl.jsonl.gz --output data/quality
      megagpt data quality train --method fasttext --good answers.jsonl --bad crawl.jsonl --documents 200000 \\
          --output data/quality

    Inputs are files, folders or globs, as for `megagpt data preprocess`. FOLDER gets the classifier, and its metrics on
    held-out documents as quality.json and as a page, quality.html. docs/quality.md explains them.
    """
    from megagpt.data.corpus.text.quality.texts import Texts
    from megagpt.data.corpus.text.quality.train import Training, train
    from megagpt.data.files import write_atomic
    from megagpt.data.readers import FOLDER_PATTERNS
    from megagpt.evaluate.quality_page import build_quality_page

    read = {"key": key, "patterns": patterns or FOLDER_PATTERNS}
    classes = (Texts(inputs, **read, max_rejected=max_rejected, max_record_mb=max_record_mb) for inputs in (good, bad))
    given = {"bucket": buckets, "dim": dimension, "epoch": epochs}
    fasttext = {name: value for name, value in given.items() if value is not None}
    about = train(*classes, output, Training(**settings, fasttext=fasttext))
    write_atomic(output / "quality.html", build_quality_page(about, output.name).encode())
    figures = about["held_out"]
    click.echo(
        f"{output}/quality.html: {sum(figures['documents'].values()):,} documents held out, "
        f"ROC AUC {figures['roc_auc']:.4f}, average precision {figures['average_precision']:.4f}, "
        f"log-loss {figures['log_loss']:.4f}"
    )
