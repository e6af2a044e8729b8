"""Show what a model will learn from files of conversations: samples as it sees them, and counts.

    python tools/preview_data.py demonstrations.jsonl --tokenizer data/chat_tokenizer.json --sequence-length 2048

What counts in the loss is marked, in a terminal by colour, otherwise by [[ ]]. Files in which nothing or everything
counts are refused, as training refuses them.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path

from megagpt.data.chat import Example, truncate_to_context
from megagpt.data.conversation_loader import check_masks
from megagpt.data.conversations import read_conversations
from megagpt.data.packing import pack
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.log import run_tool


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help=".jsonl or .json, also .gz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json with the roles of a conversation")
    parser.add_argument("--sequence-length", type=int, default=2048, help="context, in tokens (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="conversations to print (default: %(default)s)")
    options = parser.parse_args()
    for name in ("sequence_length", "samples"):
        if getattr(options, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must not be negative")
    tokenizer = Tokenizer.load(options.tokenizer)
    conversations = read_conversations(options.files)
    fitting = [truncate_to_context(tokenizer, one.messages, options.sequence_length + 1) for one in conversations]
    examples = [example for example in fitting if example is not None]
    if not examples:
        raise DataError(
            f"none of {len(conversations)} conversations has an answer within {options.sequence_length} tokens"
        )
    check_masks(examples, tokenizer)
    for number in range(min(options.samples, len(examples))):
        example = examples[number * len(examples) // max(1, options.samples)]
        print(marked(example, tokenizer, sys.stdout.isatty()), end="\n\n")
    lengths = [len(example.tokens) - 1 for example in examples]
    trained = sum(int(example.trained.sum()) for example in examples)
    rows = len(pack(lengths, options.sequence_length))
    print(f"{len(conversations)} conversations, {len(fitting) - len(examples)} of them left out as too long")
    print(f"{sum(lengths)} tokens, {trained} ({trained / sum(lengths):.1%}) count; the longest has {max(lengths)}")
    share = sum(lengths) / (rows * options.sequence_length)
    print(f"packed: {rows} sequences of {options.sequence_length}, {share:.1%} full")


def marked(example: Example, tokenizer: Tokenizer, colour: bool) -> str:
    """The text of an example with what is trained on between marks; special tokens are spelled out."""
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


if __name__ == "__main__":
    run_tool(main)
