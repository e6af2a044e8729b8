"""`megagpt search duplicates`."""

from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.cli.search.results import bold, json_line, shortened


@click.command("duplicates", cls=Command, short_help="Find groups of documents with nearly the same meaning.")
@options.index
@click.option(
    "--above",
    type=click.FloatRange(-1, 1),
    default=0.95,
    show_default=True,
    help="Smallest cosine of two documents that count as duplicates.",
)
@options.as_json
def command(folder: Path, above: float, as_json: bool) -> None:
    """Find groups of documents with nearly the same meaning.

    \b
    Examples
      megagpt search duplicates docs_index
      megagpt search duplicates docs_index --above 0.99 --json > duplicates.jsonl

    A group holds all documents that a chain of such pairs connects; the largest group comes first. --json prints one
    object per group, with the documents' numbers. Every pair is compared: twice the documents take four times as long.
    """
    from megagpt.evaluate.index import Index, find_duplicates

    index = Index.open(folder)
    groups = find_duplicates(index.vectors, above)
    for rows in groups:
        if as_json:
            click.echo(json_line({"numbers": rows, "texts": [index.texts[row]["text"] for row in rows]}), nl=False)
            continue
        click.echo(bold(f"{len(rows)} documents"))
        click.echo(
            "".join(f"  {click.style(f'#{row}', fg='cyan')}  {shortened(index.texts[row]['text'])}\n" for row in rows)
        )
    if not as_json:
        count = sum(map(len, groups))
        click.echo(
            f"{len(groups)} groups with {count} of {len(index.vectors)} documents, at a cosine of {above} or more"
        )
