"""`megagpt data preprocess`."""

from pathlib import Path
from typing import Literal

import click

from megagpt.cli import options
from megagpt.cli.group import Command


@click.command("preprocess", cls=Command, goes_on=True, short_help="Tokenize files of text into a corpus.")
@click.argument("inputs", nargs=-1, type=options.INPUT, required=True, metavar="INPUT...")
@options.tokenizer
@click.option("--output", type=options.INPUT, required=True, metavar="PREFIX", help="Path of the corpus, without .bin.")
@options.text_files
@click.option("--workers", type=int, help="Tokenizing processes [default: one per core].")
@click.option(
    "--engine",
    type=click.Choice(("gigatoken", "tokenizers")),
    help="Library that tokenizes [default: GigaToken if it gives the same ids].",
)
@options.rejection
def command(
    inputs: tuple[str, ...],
    tokenizer: Path,
    output: str,
    key: str,
    patterns: tuple[str, ...],
    workers: int | None,
    engine: Literal["gigatoken", "tokenizers"] | None,
    max_rejected: int,
    max_record_mb: float,
) -> None:
    """Tokenize files of text into a corpus to train on: PREFIX.bin, PREFIX.idx and PREFIX.json.

    \b
    Examples
      megagpt data preprocess corpus.jsonl --tokenizer tokenizer.json --output data/corpus
      megagpt data preprocess web/*.jsonl.zst books/ --tokenizer tokenizer.json --output data/mix --max-rejected 100
      megagpt data preprocess src/ --pattern '*.py' --pattern '*.c' --tokenizer code.json --output data/code

    Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and other files as text, one document per
    file. The output has Megatron's format. After an interruption, the same command goes on where it stopped. A
    malformed record is named (file:line) and counted; more than --max-rejected of them fail the command.
    """
    from megagpt.data.preprocess import preprocess
    from megagpt.data.readers import FOLDER_PATTERNS

    about = preprocess(
        inputs,
        tokenizer,
        output,
        key=key,
        patterns=patterns or FOLDER_PATTERNS,
        workers=workers,
        max_rejected=max_rejected,
        max_record_mb=max_record_mb,
        engine=engine,
    )
    per_token = about["bytes"] / about["tokens"]
    click.echo(
        f"{output}: {about['documents']:,} documents, {about['tokens']:,} tokens, {per_token:.2f} bytes per token"
    )
