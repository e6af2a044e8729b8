"""`megagpt data tokenizer`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megagpt.data.tokenizer import Tokenizer


@click.command("tokenizer", cls=Command, short_help="Train a byte-level BPE tokenizer, or add tokens to one.")
@click.argument("inputs", nargs=-1, type=options.INPUT, metavar="[INPUT]...")
@click.option("--output", type=options.FILE, required=True, help="tokenizer.json to write.")
@click.option("--vocab-size", type=int, help="Tokens, end-of-text included (GPT-3: 50257).")
@click.option("--extend", type=options.FILE, metavar="OLD", help="A tokenizer.json to add tokens to.")
@click.option(
    "--add",
    type=click.Choice(("code", "chat")),
    default="code",
    show_default=True,
    help="With --extend: what the tokens are for.",
)
@click.option("--longest-run", type=int, default=32, show_default=True, help="With --extend: most spaces in a token.")
@options.text_files
@options.max_mb
@options.rejection
def command(
    inputs: tuple[str, ...],
    output: Path,
    vocab_size: int | None,
    extend: Path | None,
    add: str,
    longest_run: int,
    key: str,
    patterns: tuple[str, ...],
    max_mb: float | None,
    max_rejected: int,
    max_record_mb: float,
) -> None:
    """Train a byte-level BPE tokenizer, like GPT-2's and GPT-3's, on files of text.

    \b
    Examples
      megagpt data tokenizer corpus.jsonl --vocab-size 8192 --output tokenizer.json
      megagpt data tokenizer books/ web/*.jsonl.gz --vocab-size 50257 --max-mb 2000 --output tokenizer.json
      megagpt data tokenizer src/ --pattern '*.py' --vocab-size 8192 --output code.json
      megagpt data tokenizer --extend tokenizer.json --output code.json
      megagpt data tokenizer --extend code.json --add chat --output chat.json

    The last two add tokens to a tokenizer and keep its ids: tokens for code (runs of spaces, and fill-in-the-middle),
    or the roles of a conversation. For code it prints how many tokens this saves on the inputs, or without inputs on
    the standard library of this Python.

    Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and other files as text, one document per
    file. The same inputs always give the same tokenizer.
    """
    from megagpt.data.readers import FOLDER_PATTERNS
    from megagpt.data.sampling import sample_texts
    from megagpt.data.tokenizer import train_tokenizer

    texts = sample_texts(
        inputs,
        key=key,
        patterns=patterns or FOLDER_PATTERNS,
        max_mb=max_mb,
        max_rejected=max_rejected,
        max_record_mb=max_record_mb,
    )
    if extend:
        if vocab_size is not None:
            raise ConfigError(
                "--vocab-size is for training a tokenizer; --extend keeps the old one's tokens: leave it out"
            )
        old, new = extended(extend, add, longest_run, output)
        if add == "code":
            show_saving(old, new, texts if inputs else None, output)
        return
    if not inputs or vocab_size is None:
        raise ConfigError("give files to train on and --vocab-size, or a tokenizer to --extend")
    trained = train_tokenizer(texts, vocab_size)
    save(trained, output)
    if trained.vocab_size < vocab_size:
        click.echo(f"the text is too short for {vocab_size} tokens; set model.vocab_size to {trained.vocab_size}")


def extended(path: Path, add: str, longest_run: int, output: Path) -> tuple["Tokenizer", "Tokenizer"]:
    """Write the tokenizer at `path` with more tokens; returns the old and the new one.

    Raises DataError where it brings a chat template that does not serve.
    """
    from megagpt.data.chat import grow_for_chat, try_template
    from megagpt.data.code_tokens import grow_for_code
    from megagpt.data.tokenizer import Tokenizer

    old = Tokenizer.load(path)
    new = grow_for_chat(old) if add == "chat" else grow_for_code(old, longest_run)
    try:
        try_template(new)
    except DataError as error:
        raise DataError(
            f"{path}: {error}. Mend the template, or remove it from the files beside the tokenizer"
        ) from None
    save(new, output)
    click.echo(f"ids 0..{old.vocab_size - 1} are as in {path}; {new.vocab_size - old.vocab_size} tokens are new")
    return old, new


def show_saving(old: "Tokenizer", new: "Tokenizer", texts: Iterable[str] | None, output: Path) -> None:
    """Print what the new tokens save on `texts`, or on the standard library. Raises DataError for no text."""
    from megagpt.data.standard_library import ROOT, documents

    where = str(ROOT) if texts is None else "the inputs"
    before = after = 0
    for text in texts if texts is not None else (record["text"] for record in documents()):
        before += len(old.encode(text))
        after += len(new.encode(text))
    if not before:
        raise DataError(f"{where}: there is no text to measure the saving on; {output} was written anyway")
    click.echo(f"{where}: {after} tokens instead of {before}, {1 - after / before:.1%} fewer")


def save(tokenizer: "Tokenizer", path: Path) -> None:
    """Write the tokenizer.json, and print its size and hash."""
    tokenizer.save(path)
    click.echo(f"{path}: {tokenizer.vocab_size} tokens, sha256 {tokenizer.sha256}")
