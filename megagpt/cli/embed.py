"""`megagpt embed`."""

from pathlib import Path
from typing import Any

import click

from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice
from megagpt.errors import ConfigError

FORMATS = (".npy", ".parquet", ".jsonl")


@click.command("embed", cls=RankedCommand, goes_on=True, short_help="Turn texts into vectors.")
@click.argument("inputs", nargs=-1, required=True, type=options.FILE, metavar="INPUT...")
@options.checkpoint
@click.option("--output", type=options.FILE, required=True, help="Vectors to write: .npy, .parquet or .jsonl.")
@click.option(
    "--side",
    type=click.Choice(["query", "document"]),
    default="document",
    show_default=True,
    help="Kind of the texts; a model uses different delimiters for each kind.",
)
@options.dimensions
@click.option("--with-text", is_flag=True, help="Write the texts with their vectors (.parquet, .jsonl).")
@click.option("--key", default="text", show_default=True, help="Key or column of the text.")
@options.embedding_layout
@one_voice()
def command(
    inputs: tuple[Path, ...],
    checkpoint: Path,
    output: Path,
    side: str,
    dimensions: int | None,
    with_text: bool,
    key: str,
    **layout: Any,
) -> None:
    """Turn texts into vectors of length 1. The dot product of two vectors is the similarity of the texts.

    \b
    Examples
      megagpt embed --checkpoint runs/embed documents.jsonl --output vectors.npy
      megagpt embed --checkpoint runs/embed questions.txt --side query --output questions.jsonl --with-text
      megagpt embed --checkpoint runs/embed --nproc-per-node 8 --tensor-parallel-size 2 web/ --output web.parquet

    INPUT is a file, folder or glob of .jsonl (one object per line), .parquet or text (one text per line), also
    compressed. Vectors are float32, in the order of the texts; OUTPUT.meta.json describes their model and inputs. After
    an interruption, OUTPUT.parts holds the finished work, and the same command goes on.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output is {output}; it must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if with_text and output.suffix == ".npy":
        raise ConfigError("--with-text: a .npy file holds only numbers; choose .parquet or .jsonl")
    from megagpt.cli.embedding import find_checkpoint, loader
    from megagpt.data.texts import read_texts, text_sources
    from megagpt.evaluate import vectors

    if output.suffix == ".parquet":
        vectors.import_pyarrow()
    sources = text_sources(inputs)
    folder, world = find_checkpoint(checkpoint, **layout)

    def publish(blocks: list[Path], about: dict[str, Any]) -> None:
        size = about["dimensions"]
        if output.suffix == ".npy":
            vectors.write_npy(output, blocks, about["count"], size)
        elif output.suffix == ".parquet":
            vectors.write_parquet(output, blocks, read_texts(sources, key), size, with_text)
        else:
            vectors.write_jsonl(output, blocks, read_texts(sources, key), with_text)

    vectors.make_vectors(
        sources,
        folder,
        loader(**layout),
        publish,
        output=output,
        about=output.with_name(f"{output.name}.meta.json"),
        world=world,
        key=key,
        side=side,
        dimensions=dimensions,
        with_text=with_text,
    )
