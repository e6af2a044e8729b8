"""`megagpt search neighbours`."""

from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.cli.search.results import bold, json_line, results_of, shown_result


@click.command("neighbours", cls=Command, short_help="Show the documents most similar to one of the index.")
@options.index
@click.option("--of", "number", type=int, required=True, metavar="N", help="The document's number, from 0.")
@options.top
@options.as_json
def command(folder: Path, number: int, top: int, as_json: bool) -> None:
    """Show the documents most similar to one of the index, which is not shown itself.

    \b
    Example
      megagpt search neighbours docs_index --of 42

    `megagpt search ask` shows the numbers of documents: rows of the index's vectors.npy, from 0.
    """
    from megagpt.evaluate.index import Index

    index = Index.open(folder)
    found = results_of(index, *index.neighbours(number, top))
    text = index.texts[number]["text"]
    if as_json:
        click.echo(json_line({"number": number, "text": text, "results": found}), nl=False)
        return
    click.echo(bold(text))
    click.echo("".join(map(shown_result, found)), nl=False)
