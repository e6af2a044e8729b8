"""`megagpt data mixture`."""

import logging
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


@click.command("mixture", cls=Command, short_help="Compute weights and epochs of a mixture of corpora.")
@click.argument("corpora", nargs=-1, metavar="NAME=TOKENS|NAME=PREFIX.json...")
@options.words("--weights", metavar="NAME=WEIGHT,...", help="Shares of the training samples, relative to each other.")
@click.option(
    "--recipe",
    type=click.Choice(("gpt3",)),
    help="The published weights of common_crawl, webtext2, books1, "
    "books2 and wikipedia; without corpora, with the published sizes too.",
)
@click.option("--exponent", type=float, help="Weights are tokens^EXPONENT: 1 proportional, 0 equal [default: 1].")
@click.option("--train-tokens", type=float, required=True, metavar="N", help="Tokens of the run.")
@click.option("--output", type=options.FILE, required=True, metavar="FILE.yaml", help="Mixture to write, for a run.")
def command(
    corpora: tuple[str, ...],
    weights: tuple[str, ...] | None,
    recipe: str | None,
    exponent: float | None,
    train_tokens: float,
    output: Path,
) -> None:
    """Compute the weights and epochs of a mixture of corpora, and write them for a run.

    \b
    Examples
      megagpt data mixture --recipe gpt3 --train-tokens 300e9 --output mixture.yaml
      megagpt data mixture web=data/web.json books=data/books.json --weights web=0.8,books=0.2 --train-tokens 2e9 \\
          --output mixture.yaml
      megagpt data mixture de=20e9 fr=15e9 is=0.5e9 --exponent 0.3 --train-tokens 30e9 --output mixture.yaml

    `megagpt data preprocess` writes PREFIX.json. An HTML page with the same name as the YAML file shows the mixture.
    """
    from megagpt.data.corpus.text import mixture
    from megagpt.data.files import write_atomic
    from megagpt.evaluate.mixture_page import build_mixture_page

    if sum(way is not None for way in (weights, recipe, exponent)) > 1:
        raise ConfigError("--weights, --recipe and --exponent are three ways to give the weights: take one")
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: give a name that ends in .yaml")
    found = [mixture.read_corpus(text) for text in corpora]
    if not found and recipe is None:
        raise ConfigError("no corpus is given: name them as NAME=TOKENS or NAME=PREFIX.json")
    notes = []
    if recipe is not None:
        found = found or mixture.published(recipe)
        given, notes = mixture.recipe_weights(recipe, found), mixture.contradictions(recipe)
    elif weights is not None:
        given = dict(map(mixture.read_weight, weights))
    else:
        given = mixture.size_weights(found, 1.0 if exponent is None else exponent)
    parts = mixture.mix(found, given, train_tokens)
    for warning in mixture.repeated(parts):
        logging.getLogger(__name__).warning("%s", warning)
    remarks = [*notes, *mixture.repeated(parts)]
    write_atomic(output, mixture.to_yaml(parts, train_tokens, remarks).encode())
    page = output.with_suffix(".html")
    write_atomic(page, build_mixture_page(parts, train_tokens, remarks, recipe).encode())
    click.echo(f"{'corpus':20} {'tokens':>12} {'weight':>8} {'share':>7} {'epochs':>7}")
    for part in parts:
        click.echo(
            f"{part.corpus.name:20} {part.corpus.tokens:12.4g} {part.weight:8.4g} {part.share:7.1%} {part.epochs:7.2f}"
        )
    for note in notes:
        click.echo(note)
    click.echo(f"{output}, {page}")
