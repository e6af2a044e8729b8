"""Make edits by instruction to train on: {"instruction", "input", "output", "kind"} a line, as many as wanted.

python tools/make_edits.py --count 20000 --output edits.jsonl
python tools/make_edits.py books/ --kinds spelling sort_lines --count 5000 --max-chars 200 --output edits.jsonl
python tools/make_edits.py src/ --pattern '*.py' --kinds rename fix_bug --count 5000 --output edits.jsonl

Inputs are files, folders or globs: .jsonl (also .gz, .zst), .parquet, and anything else as text; without any, the
standard library of this Python. Where the answer is a function that works, the record holds its tests too.
"""

import argparse
import json
import sysconfig
from collections import Counter
from pathlib import Path

from demo_corpus import documents

from megagpt.data.edits.make import KINDS, make_edits
from megagpt.data.files import write_atomic
from megagpt.data.readers import FOLDER_PATTERNS
from megagpt.data.sampling import sample_texts
from megagpt.errors import ConfigError
from megagpt.log import progress, run_tool


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="file, folder or glob")
    add("--output", type=Path, required=True, help=".jsonl to write")
    add("--count", type=int, default=10_000, help="edits to make, the kinds in equal shares (default: %(default)s)")
    add("--kinds", nargs="+", default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    add("--max-chars", type=int, default=400, help="longest input, in characters (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed and inputs give the same edits (default: %(default)s)")
    add("--split", choices=("train", "validation"), help="only of 95%% of the texts, or of the other 5%%, by a hash")
    add("--key", default="text", help="key or column of the text (default: %(default)s)")
    add("--pattern", action="append", help="names of the files to take from folders; may be repeated")
    add("--max-mb", type=float, help="read about this many MB, spread evenly over the inputs (default: all)")
    options = parser.parse_args()
    for name in ("count", "max_chars"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1")
    if options.inputs:
        patterns = options.pattern or FOLDER_PATTERNS
        texts = sample_texts(options.inputs, key=options.key, patterns=patterns, max_mb=options.max_mb)
    else:
        texts = (record["text"] for record in documents(Path(sysconfig.get_paths()["stdlib"])))
    settings = {name: getattr(options, name) for name in ("kinds", "max_chars", "seed", "split")}
    edits = make_edits(texts, options.count, **settings)
    lines, counts = [], Counter()
    with progress(options.count, "edits", "making") as bar:
        for edit in edits:
            lines.append(json.dumps(edit.record(), ensure_ascii=False) + "\n")
            counts[edit.kind] += 1
            bar.update(1)
    write_atomic(options.output, "".join(lines).encode())
    print(f"{options.output}: {len(lines)} edits: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")


if __name__ == "__main__":
    run_tool(main)
