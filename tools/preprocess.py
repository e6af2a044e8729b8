"""Tokenize files of text into a corpus to train on: PREFIX.bin, PREFIX.idx and PREFIX.json.

    python tools/preprocess.py corpus.jsonl --tokenizer tokenizer.json --output data/corpus
    python tools/preprocess.py web/*.jsonl.zst books/ --tokenizer tokenizer.json --output data/mix --max-rejected 100
    python tools/preprocess.py src/ --pattern '*.py' --pattern '*.c' --tokenizer code.json --output data/code

Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and anything else as text, one document a file.
The files are Megatron's. An interrupted run goes on where it stopped when the command is given again. A malformed
record is named (file:line) and counted; more than --max-rejected of them fail the command.
"""

import argparse

from megagpt.data.preprocess import MAX_RECORD_MB, preprocess
from megagpt.data.readers import FOLDER_PATTERNS
from megagpt.log import run_tool


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder or glob")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json, as made by tools/train_tokenizer.py")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="where the corpus goes, without .bin")
    parser.add_argument("--key", default="text", help="key or column of the text (default: %(default)s)")
    parser.add_argument(
        "--pattern",
        action="append",
        help=f"names of the files to take from folders; may be repeated (default: {' '.join(FOLDER_PATTERNS)})",
    )
    parser.add_argument("--workers", type=int, help="tokenizing processes (default: one a core)")
    parser.add_argument("--max-rejected", type=int, default=0, help="malformed records to tolerate (default: 0)")
    parser.add_argument(
        "--max-record-mb", type=float, default=MAX_RECORD_MB, help="longest record, in MB (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Make the corpus."""
    args = parse()
    about = preprocess(
        args.inputs,
        args.tokenizer,
        args.output,
        key=args.key,
        patterns=args.pattern or FOLDER_PATTERNS,
        workers=args.workers,
        max_rejected=args.max_rejected,
        max_record_mb=args.max_record_mb,
    )
    per_token = about["bytes"] / about["tokens"]
    print(f"{args.output}: {about['documents']:,} documents, {about['tokens']:,} tokens, {per_token:.2f} bytes a token")


if __name__ == "__main__":
    run_tool(main)
