"""Write the Python standard library's source as jsonl: a corpus that every machine with Python has.

python tools/demo_corpus.py --output runs/demo/data/stdlib.jsonl

With --packages it adds that of the installed packages, for a larger model.
"""

import argparse
import json
from pathlib import Path

from megagpt.data.standard_library import PACKAGES, ROOT, documents, package_documents
from megagpt.errors import DataError
from megagpt.log import run_tool
from megagpt.train.metrics import replace_file


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="jsonl file to write")
    parser.add_argument("--packages", action="store_true", help="add the source of the installed packages")
    options = parser.parse_args()
    records, roots = list(documents()), f"{ROOT}"
    if not records:
        raise DataError(f"{ROOT} has no Python source files: is the standard library installed as source?")
    if options.packages:
        records += package_documents()
        roots += f" and {PACKAGES}"
    size = sum(len(record["text"].encode()) for record in records)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.output, "".join(json.dumps(record) + "\n" for record in records))
    print(f"{options.output}: {len(records)} files, {size / 1e6:.1f} MB from {roots}")


if __name__ == "__main__":
    run_tool(main)
