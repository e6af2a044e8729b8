"""`megagpt search index`."""

from pathlib import Path
from typing import Any

import click

from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice


@click.command("index", cls=RankedCommand, goes_on=True, short_help="Embed documents and store them for search.")
@click.argument("documents", nargs=-1, required=True, type=options.FILE, metavar="DOCUMENTS...")
@options.checkpoint
@click.option("--output", type=options.FILE, required=True, help="Folder of the index.")
@options.dimensions
@click.option("--key", default="text", show_default=True, help="Key or column of the text.")
@options.embedding_layout
@one_voice()
def command(
    documents: tuple[Path, ...],
    checkpoint: Path,
    output: Path,
    dimensions: int | None,
    key: str,
    **layout: Any,
) -> None:
    """Embed documents and store them for search.

    \b
    Examples
      megagpt search index documents.jsonl --checkpoint runs/embed --output docs_index
      megagpt search index code/ --checkpoint runs/embed --nproc-per-node 2 --output code_index

    DOCUMENTS are as for `megagpt embed`: .jsonl, .parquet, or text with one document per line. The index stores the
    texts and the other keys of JSON objects; results show these keys, and maps can use them for colours. After an
    interruption, the same command goes on where it stopped.
    """
    from megagpt.cli.embedding import find_checkpoint, loader
    from megagpt.data.texts import read_texts, text_sources
    from megagpt.evaluate.index import ABOUT, VECTORS, publish_index
    from megagpt.evaluate.vectors import make_vectors

    sources = text_sources(documents)
    folder, world = find_checkpoint(checkpoint, **layout)
    make_vectors(
        sources,
        folder,
        loader(**layout),
        lambda blocks, about: publish_index(output, blocks, about, read_texts(sources, key)),
        output=output / VECTORS,
        about=output / ABOUT,
        world=world,
        key=key,
        side="document",
        dimensions=dimensions,
    )
