"""Write the Python standard library's source as jsonl: a corpus that every machine with Python has.

python tools/demo_corpus.py --output runs/demo/data/stdlib.jsonl
"""

import argparse
import json
from pathlib import Path

from megagpt.data.standard_library import ROOT, documents
from megagpt.errors import DataError
from megagpt.log import run_tool
from megagpt.train.metrics import replace_file


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="jsonl file to write")
    options = parser.parse_args()
    records = list(documents())
    size = sum(len(record["text"].encode()) for record in records)
    if not records:
        raise DataError(f"{ROOT} has no Python source files: is the standard library installed as source?")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.output, "".join(json.dumps(record) + "\n" for record in records))
    print(f"{options.output}: {len(records)} files, {size / 1e6:.1f} MB from {ROOT}")


if __name__ == "__main__":
    run_tool(main)
