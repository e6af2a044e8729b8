"""`megagpt search map`."""

from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command


@click.command("map", cls=Command, short_help="Draw the documents on a page, similar ones near each other.")
@options.index
@click.option("--output", type=options.FILE, required=True, help="Page to write, .html.")
@click.option("--clusters", type=click.IntRange(min=1), default=10, show_default=True, help="Clusters, each a colour.")
@click.option("--color-by", metavar="KEY", help="Colour by this key of the documents instead.")
@click.option(
    "--points",
    type=click.IntRange(min=1),
    default=4000,
    show_default=True,
    help="Most documents to draw, a random choice.",
)
@options.seed
def command(folder: Path, output: Path, clusters: int, color_by: str | None, points: int, seed: int) -> None:
    """Draw the documents on a page, similar ones near each other.

    \b
    Examples
      megagpt search map docs_index --output map.html
      megagpt search map docs_index --color-by language --output map.html

    The page is one file that needs no network. It shows a document's text and the most similar documents, finds words,
    and lists the groups. t-SNE places the points; it takes seconds for hundreds of documents, and minutes for many
    thousands.
    """
    from megagpt.data.files import write_atomic
    from megagpt.evaluate.index import Index
    from megagpt.evaluate.map_page import build_map

    page = build_map(Index.open(folder), groups=clusters, key=color_by, points=points, seed=seed)
    write_atomic(output, page.encode(errors="backslashreplace"))
    click.echo(output)
