"""`megagpt data edits`."""

import json
from collections import Counter
from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


@click.command("edits", cls=Command, short_help="Make edits by instruction out of any text and code.")
@click.argument("inputs", nargs=-1, type=options.INPUT, metavar="[INPUT]...")
@click.option("--output", type=options.FILE, required=True, help=".jsonl to write.")
@click.option("--count", type=int, default=10_000, show_default=True, help="Edits to make, the kinds in equal shares.")
@options.words("--kinds", metavar="KIND,...", help="Some of the kinds above [default: all].")
@click.option("--max-chars", type=int, default=400, show_default=True, help="Longest input, in characters.")
@options.seed
@click.option(
    "--split",
    type=click.Choice(("train", "validation")),
    help="Use only 95% of the texts (train), or only the other 5%.",
)
@options.text_files
@options.max_mb
def command(
    inputs: tuple[str, ...],
    output: Path,
    count: int,
    kinds: tuple[str, ...] | None,
    max_chars: int,
    seed: int,
    split: str | None,
    key: str,
    patterns: tuple[str, ...],
    max_mb: float | None,
) -> None:
    """Make edits by instruction to train on: one {"instruction", "input", "output", "kind"} per line.

    \b
    Examples
      megagpt data edits --count 20000 --output edits.jsonl
      megagpt data edits books/ --kinds spelling,sort_lines --count 5000 --max-chars 200 --output edits.jsonl
      megagpt data edits src/ --pattern '*.py' --kinds rename,fix_bug --count 5000 --output edits.jsonl

    Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and other files as text. Without inputs, it
    reads the standard library of this Python. Records of fix_bug also hold the tests of the function.

    \b
    Kinds
      spelling, uppercase, lowercase, sentence_case, replace_word, remove_word, sort_lines, reverse_lines,
      number_lines, single_spaces, rename, remove_comments, add_comment, remove_docstring, sort_imports, fix_bug
    """
    from megagpt.data.edits.make import KINDS, make_edits
    from megagpt.data.files import write_atomic
    from megagpt.data.readers import FOLDER_PATTERNS
    from megagpt.data.sampling import sample_texts
    from megagpt.data.standard_library import documents
    from megagpt.log import progress

    for name, value in (("--count", count), ("--max-chars", max_chars)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if inputs:
        texts = sample_texts(inputs, key=key, patterns=patterns or FOLDER_PATTERNS, max_mb=max_mb)
    else:
        texts = (record["text"] for record in documents())
    edits = make_edits(texts, count, kinds=kinds or KINDS, max_chars=max_chars, seed=seed, split=split)
    lines, counts = [], Counter()
    with progress(count, "edits", "making") as bar:
        for edit in edits:
            lines.append(json.dumps(edit.record(), ensure_ascii=False) + "\n")
            counts[edit.kind] += 1
            bar.update(1)
    write_atomic(output, "".join(lines).encode())
    click.echo(f"{output}: {len(lines)} edits: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
