"""Measure what each rank holds of parameters, gradients and optimizer state under ZeRO, beside the theory.

    python tools/zero_memory.py
    python tools/zero_memory.py --ranks 2 --write-docs

Bytes for each parameter of the model, on data-parallel ranks of this machine's CPUs. Gradients are what is in memory
just before an update beside the other two: DeepSpeed's buckets, at most an eighth of the gradients, are among them.
"""

import argparse
import logging
from pathlib import Path

from megagpt import log as logs
from megagpt.config.load import load
from megagpt.evaluate.zero_memory import measure, theory

log = logging.getLogger("megagpt.tools.zero_memory")

MODEL = [
    "model=tiny",
    "model.num_layers=8",
    "model.hidden_size=128",
    "model.vocab_size=512",
    "model.sequence_length=32",
    "data.corpora=[]",
]
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "zero_memory.md"
MARKERS = ("<!-- memory: made by tools/zero_memory.py -->", "<!-- memory: end -->")


def table(largest: int) -> str:
    """Measured and expected bytes on 1, 2, 4 ... `largest` ranks, as Markdown."""
    parts = ("parameters", "gradients", "optimizer")
    lines = [
        "| precision | ranks | stage | " + " | ".join(f"{part} | theory" for part in parts) + " |",
        "| --- " + "| ---: " * (2 + 2 * len(parts)) + "|",
    ]
    for precision in ("bf16", "fp32"):
        config = load([*MODEL, f"optim.precision={precision}"])
        for ranks in (2**power for power in range(largest.bit_length())):
            log.info("%s on %d ranks", precision, ranks)
            for stage, held in measure(config, [1, 2, 3], ranks).items():
                expected = theory(stage, ranks, precision == "bf16")
                cells = [f"{getattr(held, part):.2f} | {getattr(expected, part):.2f}" for part in parts]
                lines.append(f"| {precision} | {ranks} | {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4, help="largest number of ranks (default: %(default)s)")
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into docs/benchmarks/{PAGE.name}")
    args = parser.parse_args()
    if args.ranks < 1:
        parser.error("--ranks must be at least 1")
    text = table(args.ranks)
    print(text)
    if args.write_docs:
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        PAGE.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    logs.run_tool(main)
