"""`megagpt data quality score`."""

import json
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


def shares_of(given: tuple[str, ...] | None) -> list[float]:
    """The numbers of `--top`. Raises ConfigError."""
    try:
        shares = [float(text) for text in given or ()]
    except ValueError:
        shares = [0.0]
    if not all(0 < share <= 1 for share in shares):
        raise ConfigError(f"--top {','.join(given)}: give shares above 0 and at most 1, such as 0.1,0.01")
    return shares


@click.command("score", cls=Command, short_help="Score documents with a classifier.")
@click.argument("model", type=options.FILE, metavar="MODEL")
@click.argument("inputs", nargs=-1, type=options.INPUT, required=True, metavar="INPUT...")
@click.option("--output", type=options.FILE, required=True, help=".npy or .jsonl to write, a score for every record.")
@options.words("--top", metavar="SHARE,...", help="Print the smallest scores of these top shares of the documents.")
@options.text_files
@options.rejection
@options.as_json
def command(
    model: Path,
    inputs: tuple[str, ...],
    output: Path,
    top: tuple[str, ...] | None,
    key: str,
    patterns: tuple[str, ...],
    max_rejected: int,
    max_record_mb: float,
    as_json: bool,
) -> None:
    """Score every document with the classifier in the folder MODEL, from 0 (like bad documents) to 1 (like good ones).

    \b
    Example
      megagpt data quality score data/quality crawl/*.jsonl.gz --output scores.npy --top 0.1,0.01

    The printed thresholds refer to these documents: score a random sample of a corpus, or all of it.
    """
    from megagpt.data.corpus.text.quality.model import load_model
    from megagpt.data.corpus.text.quality.score import score_files
    from megagpt.data.corpus.text.quality.texts import Texts
    from megagpt.data.readers import FOLDER_PATTERNS

    shares = shares_of(top)
    texts = Texts(inputs, key, patterns or FOLDER_PATTERNS, max_rejected, max_record_mb)
    about = score_files(load_model(model), texts, output, shares)
    if as_json:
        click.echo(json.dumps(about))
        return
    click.echo(
        f"{output}: {about['documents']:,} documents, mean score {about['mean_score']:.4f}; GPT-3's rule would keep "
        f"{about['kept_by_pareto']:.1%}"
    )
    for share, threshold in about["thresholds"].items():
        click.echo(f"top {float(share):.2%}: scores of {threshold:.6g} and more")
