"""How time and memory of `megagpt data corpus` grow with the crawl.

    python tools/grow_corpus.py --data ../shared/data --output docs/benchmarks/corpus_growth_cpu.json

For each size it writes WET files whose pages are sentences of --data in an order of their own, filters them with
--recipe, and reports: CPU seconds of all processes, those of each step, seconds, the most memory that a process held,
and megabytes on disk. One page in 50 is an exact copy of an earlier one, one in 20 a near copy. CPU seconds change
little when the machine has other work; seconds do. It fails where CPU seconds grow more than 1.2 times as fast as the
text, or where the most memory grows more than half as fast.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from measured_on import measured_on
from raw_crawl import CLEAN, clean_pages, spoilt, write_wet

from megagpt.errors import ConfigError, MegaGPTError
from megagpt.log import run_tool

FILE_MB = 25
"""Text of a WET file."""
PAGE = (15, 60)
"""Sentences of a page, fewest and most."""
EXACT, NEAR = 0.02, 0.05
"""Shares of pages that are copies."""
RECENT = 10_000
"""Copies are of one of so many pages before."""
SPOILT = 0.02
"""Share of a near copy's words that are others."""
MOST_TIME, MOST_MEMORY = 1.2, 0.5
"""How much faster than the text CPU seconds and memory may grow."""


def pages(sentences: list[str], size: float, seed: int) -> Iterator[str]:
    """Pages of `size` bytes in all."""
    dice, recent, made = random.Random(seed), [], 0
    words = sorted({word for sentence in sentences[:2000] for word in sentence.split()})
    while made < size:
        kind = dice.random()
        if recent and kind < EXACT:
            page = dice.choice(recent)
        elif recent and kind < EXACT + NEAR:
            page = spoilt(dice.choice(recent), SPOILT, words, dice)
        else:
            drawn = dice.choices(sentences, k=dice.randint(*PAGE))
            page = "\n".join(" ".join(drawn[first : first + 5]) for first in range(0, len(drawn), 5))
        recent = [*recent[-RECENT:], page] if len(recent) >= 2 * RECENT else recent
        recent.append(page)
        made += len(page.encode())
        yield page


def write_crawl(folder: Path, sentences: list[str], size: float, seed: int) -> tuple[int, int]:
    """Write the WET files; returns their number of pages and the bytes of their text."""
    folder.mkdir(parents=True)
    source, count, written, place = pages(sentences, size, seed), 0, 0, 0
    while written < size:

        def part() -> Iterator[str]:
            nonlocal count
            begun = 0
            for page in source:
                count += 1
                begun += len(page.encode())
                yield page
                if begun >= FILE_MB * 1e6:
                    return

        written += write_wet(folder / f"{place:05}.wet.gz", part())
        place += 1
    return count, written


def measure(args: argparse.Namespace, sentences: list[str], size: float) -> dict[str, Any]:
    """Make a crawl and its corpus, and say what that took. The peak of memory is that of the largest size so far."""
    crawl, corpus = args.folder / "crawl", args.folder / "corpus"
    for folder in (crawl, corpus, args.folder / "corpus.work"):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"writing a crawl of {size / 1e6:,.0f} MB", flush=True)
    count, written = write_crawl(crawl, sentences, size, args.seed)
    command = ["-m", "megagpt.cli", "data", "corpus", str(crawl), "--kind", "web", "--recipe", args.recipe]
    command += ["--workers", str(args.workers), "--output", str(corpus)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        raise MegaGPTError(f"megagpt data corpus ended with exit code {code}")
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    report = json.loads((corpus / "report.json").read_bytes())
    return {
        "text_mb": round(written / 1e6, 1),
        "pages": count,
        "kept_pages": report["corpus"]["documents"],
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(after.ru_maxrss * 1024 / 1e6),
        "cpu_seconds_by_step": json.loads((corpus / "timing.json").read_bytes()),
        "crawl_mb": round(sum(file.stat().st_size for file in crawl.iterdir()) / 1e6, 1),
        "corpus_mb": round(sum(file.stat().st_size for file in corpus.rglob("*") if file.is_file()) / 1e6, 1),
    }


def judge(sizes: list[dict[str, Any]]) -> list[str]:
    """What grows too fast from one size to the next."""
    faults = []
    for small, large in pairwise(sizes):
        text = large["text_mb"] / small["text_mb"]
        for name, most in (("cpu_seconds", MOST_TIME), ("peak_memory_mb", MOST_MEMORY)):
            growth = large[name] / small[name]
            if growth > most * text:
                faults.append(f"{name}: {growth:.1f} times for {text:.1f} times the text")
    return faults


def main() -> None:
    """Measure each size, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--mb", type=float, nargs="+", default=[100, 1000, 10000], help="(default: 100 1000 10000)")
    parser.add_argument("--folder", type=Path, default=Path("runs/grow_corpus"), help="(default: %(default)s)")
    parser.add_argument("--recipe", default="fineweb", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pages (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.mb != sorted(args.mb) or args.mb[0] <= 0:
        raise ConfigError("--mb must be sizes above 0, the smallest first: the peak of memory is that of all before")
    texts = [text for kind in CLEAN for text in clean_pages(args.data, kind, 8e6)]
    sentences = [part.strip() + "." for text in texts for part in text.split(". ") if 40 < len(part) < 400]
    result: dict[str, Any] = {"recipe": args.recipe, "workers": args.workers, "sizes": []}
    for mb in args.mb:
        result["sizes"].append(measure(args, sentences, mb * 1e6))
        print(json.dumps(result["sizes"][-1]), flush=True)
        if args.output:
            args.output.write_text(json.dumps(result | measured_on("datatrove", "numpy"), indent=1) + "\n")
    if faults := judge(result["sizes"]):
        raise MegaGPTError("; ".join(faults))


if __name__ == "__main__":
    run_tool(main)
