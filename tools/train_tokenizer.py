"""Train a byte-level BPE tokenizer, as GPT-2's and GPT-3's, on files of text.

    python tools/train_tokenizer.py corpus.jsonl --vocab-size 8192 --output tokenizer.json
    python tools/train_tokenizer.py books/ web/*.jsonl.gz --vocab-size 50257 --max-mb 2000 --output tokenizer.json
    python tools/train_tokenizer.py src/ --pattern '*.py' --vocab-size 8192 --output code.json

Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and anything else as text, one document a file.
The same inputs always give the same tokenizer.
"""

import argparse

from megagpt.data.preprocess import MAX_RECORD_MB
from megagpt.data.readers import FOLDER_PATTERNS
from megagpt.data.sampling import sample_texts
from megagpt.data.tokenizer import train_tokenizer
from megagpt.log import run_tool


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder or glob")
    parser.add_argument("--vocab-size", type=int, required=True, help="tokens, end-of-text included (GPT-3: 50257)")
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
    """Train and save."""
    args = parse()
    texts = sample_texts(
        args.inputs,
        key=args.key,
        patterns=args.pattern or FOLDER_PATTERNS,
        max_mb=args.max_mb,
        max_rejected=args.max_rejected,
        max_record_mb=args.max_record_mb,
    )
    tokenizer = train_tokenizer(texts, args.vocab_size)
    tokenizer.save(args.output)
    print(f"{args.output}: {tokenizer.vocab_size} tokens, sha256 {tokenizer.sha256}")
    if tokenizer.vocab_size < args.vocab_size:
        print(f"the text is too short for {args.vocab_size} tokens; set model.vocab_size to {tokenizer.vocab_size}")


if __name__ == "__main__":
    run_tool(main)
