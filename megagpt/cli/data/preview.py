"""`megagpt data preview`."""

import sys
from collections import Counter
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megagpt.data.chat import Example
    from megagpt.data.tokenizer import Tokenizer


@click.command("preview", cls=Command, short_help="Show conversations as a model will see them.")
@click.argument("files", nargs=-1, required=True, type=options.FILE, metavar="FILE...")
@options.tokenizer
@click.option("--sequence-length", type=int, default=2048, show_default=True, help="Context, in tokens.")
@click.option("--samples", type=int, default=2, show_default=True, help="Conversations to print.")
def command(files: tuple[Path, ...], tokenizer: Path, sequence_length: int, samples: int) -> None:
    """Show files of conversations as a model will see them: samples, and counts.

    \b
    Example
      megagpt data preview demonstrations.jsonl --tokenizer data/chat_tokenizer.json --sequence-length 2048

    Colour in a terminal, and otherwise [[ ]], marks the text that counts in the loss. Like training, it refuses files
    (.jsonl or .json, also .gz) in which nothing or everything counts. Then it prints the shape of each file, the fields
    that are not read, and the number of omitted conversations for each reason.
    """
    from megagpt.config.schema import DataConfig
    from megagpt.data.chat import has_answer, truncate_to_context
    from megagpt.data.conversation_loader import check_masks
    from megagpt.data.conversations import SAYS_NOTHING, Account, read_conversations
    from megagpt.data.packing import pack
    from megagpt.data.tokenizer import Tokenizer
    from megagpt.data.unread import described

    for name, value in (("--sequence-length", sequence_length), ("--samples", samples)):
        if value < 0:
            raise ConfigError(f"{name} is {value}; it must not be negative")
    known = Tokenizer.load(tokenizer)
    known.today = date.fromisoformat(DataConfig.chat_date)
    account = Account()
    conversations = read_conversations(files, account)
    fitting = [truncate_to_context(known, one.messages, sequence_length + 1) for one in conversations]
    examples = [example for example in fitting if example is not None]
    if not examples:
        raise DataError(f"none of {len(conversations)} conversations has an answer within {sequence_length} tokens")
    check_masks(examples, known)
    for number in range(min(samples, len(examples))):
        example = examples[number * len(examples) // max(1, samples)]
        click.echo(f"{marked(example, known, sys.stdout.isatty())}\n")
    lengths = [len(example.tokens) - 1 for example in examples]
    trained = sum(int(example.trained.sum()) for example in examples)
    rows = len(pack(lengths, sequence_length))
    for path, (shape, count) in account.files.items():
        click.echo(f"{path}: {count} records, read as {shape}")
        if account.unread[path]:
            click.echo(f"  not read, with their records: {described(account.unread[path])}")
    silent = sum(not has_answer(one.messages) for one in conversations)
    reasons = account.left_out + Counter(
        {
            "they have no answer to be learnt": silent,
            f"their first answer ends beyond {sequence_length} tokens": len(fitting) - len(examples) - silent,
        }
    )
    click.echo(f"{account.records} records, {len(examples)} of them learnt")
    for reason, count in reasons.items():
        click.echo(f"  {count} left out: {reason}")
    if account.empty:
        click.echo(f"  {account.empty} {SAYS_NOTHING}")
    click.echo(f"{sum(lengths)} tokens, {trained} ({trained / sum(lengths):.1%}) count; the longest has {max(lengths)}")
    share = sum(lengths) / (rows * sequence_length)
    click.echo(f"packed: {rows} sequences of {sequence_length}, {share:.1%} full")


def marked(example: "Example", tokenizer: "Tokenizer", colour: bool) -> str:
    """The text of an example, with marks around trained text, and with the names of special tokens."""
    names = {index: name for name, index in tokenizer.special_ids.items()}
    before, after = ("\033[32m", "\033[0m") if colour else ("[[", "]]")
    parts = []
    for trained, group in groupby(
        zip(example.tokens.tolist(), example.trained.tolist(), strict=True), lambda item: item[1]
    ):
        text, ordinary = "", []
        for token, _ in group:
            if token in names:
                text, ordinary = text + tokenizer.decode(ordinary) + names[token], []
            else:
                ordinary.append(token)
        text += tokenizer.decode(ordinary)
        parts.append(f"{before}{text}{after}" if trained else text)
    return "".join(parts)
