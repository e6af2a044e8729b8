"""Train a byte-level BPE tokenizer, as GPT-2's and GPT-3's, on files of text.

    python tools/train_tokenizer.py corpus.jsonl --vocab-size 8192 --output tokenizer.json
    python tools/train_tokenizer.py books/ web/*.jsonl.gz --vocab-size 50257 --max-mb 2000 --output tokenizer.json
    python tools/train_tokenizer.py src/ --pattern '*.py' --vocab-size 8192 --output code.json
    python tools/train_tokenizer.py --extend tokenizer.json --output code.json
    python tools/train_tokenizer.py --extend code.json --add chat --output chat.json

The last two add tokens to a tokenizer, after its own, whose ids stay: what code needs, for runs of spaces and for
filling in the middle, or the roles of a conversation. For code it prints how many tokens that saves on the inputs, or
without inputs on the standard library of this Python.

Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and anything else as text, one document a file.
The same inputs always give the same tokenizer.
"""

import argparse
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from demo_corpus import documents

from megagpt.data.chat import grow_for_chat
from megagpt.data.code_tokens import LONGEST_RUN, grow_for_code
from megagpt.data.preprocess import MAX_RECORD_MB
from megagpt.data.readers import FOLDER_PATTERNS
from megagpt.data.sampling import sample_texts
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.log import run_tool


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="file, folder or glob")
    parser.add_argument("--vocab-size", type=int, help="tokens, end-of-text included (GPT-3: 50257)")
    parser.add_argument("--extend", metavar="OLD", help="a tokenizer.json to add tokens to, not to train one")
    parser.add_argument(
        "--add", choices=("code", "chat"), default="code", help="with --extend: what for (default: %(default)s)"
    )
    parser.add_argument(
        "--longest-run", type=int, default=LONGEST_RUN, help="with --extend: spaces in a token (default: %(default)s)"
    )
    parser.add_argument("--output", required=True, help="path of the tokenizer.json to write")
    parser.add_argument("--key", default="text", help="key or column of the text (default: %(default)s)")
    parser.add_argument(
        "--pattern",
        action="append",
        help=f"names of the files to take from folders; may be repeated (default: {' '.join(FOLDER_PATTERNS)})",
    )
    parser.add_argument("--max-mb", type=float, help="train on about this many MB, spread evenly (default: all)")
    parser.add_argument("--max-rejected", type=int, default=0, help="malformed records to tolerate (default: 0)")
    parser.add_argument(
        "--max-record-mb", type=float, default=MAX_RECORD_MB, help="longest record, in MB (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Train or extend, and save."""
    args = parse()
    texts = sample_texts(
        args.inputs,
        key=args.key,
        patterns=args.pattern or FOLDER_PATTERNS,
        max_mb=args.max_mb,
        max_rejected=args.max_rejected,
        max_record_mb=args.max_record_mb,
    )
    if args.extend:
        if args.vocab_size is not None:
            raise ConfigError(
                "--vocab-size is for training a tokenizer; --extend keeps the old one's tokens: leave it out"
            )
        extend(args, texts)
        return
    if not args.inputs or args.vocab_size is None:
        raise ConfigError("give files to train on and --vocab-size, or a tokenizer to --extend")
    tokenizer = train_tokenizer(texts, args.vocab_size)
    save(tokenizer, args.output)
    if tokenizer.vocab_size < args.vocab_size:
        print(f"the text is too short for {args.vocab_size} tokens; set model.vocab_size to {tokenizer.vocab_size}")


def extend(args: argparse.Namespace, texts: Iterable[str]) -> None:
    """Add tokens; for code, say what they save on `texts`, or on the standard library if no input is named."""
    old = Tokenizer.load(args.extend)
    new = grow_for_chat(old) if args.add == "chat" else grow_for_code(old, args.longest_run)
    save(new, args.output)
    print(f"ids 0..{old.vocab_size - 1} are those of {args.extend}; {new.vocab_size - old.vocab_size} tokens are new")
    if args.add == "chat":
        return
    where = "the inputs"
    if not args.inputs:
        where = sysconfig.get_paths()["stdlib"]
        texts = (record["text"] for record in documents(Path(where)))
    before = after = 0
    for text in texts:
        before += len(old.encode(text))
        after += len(new.encode(text))
    if not before:
        raise DataError(f"{where}: there is no text to measure the saving on; {args.output} is written all the same")
    print(f"{where}: {after} tokens instead of {before}, {1 - after / before:.1%} fewer")


def save(tokenizer: Tokenizer, path: str) -> None:
    """Write the tokenizer.json and say what it is."""
    tokenizer.save(path)
    print(f"{path}: {tokenizer.vocab_size} tokens, sha256 {tokenizer.sha256}")


if __name__ == "__main__":
    run_tool(main)
