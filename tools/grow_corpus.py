"""Measure how time and memory of `megagpt data corpus` grow with the size of the crawl.

    python tools/grow_corpus.py --data ../shared/data --output docs/benchmarks/corpus_growth_cpu.json

For each size it writes WET files whose pages are random sentences of --data, filters them with --recipe, and reports
CPU seconds of all processes and of each step, wall-clock seconds, peak memory of a process, and megabytes on disk. One
page in 50 is an exact copy of an earlier page, one in 20 a near copy. Other load on the machine changes CPU seconds
only a little, but wall-clock seconds a lot. It fails if CPU seconds grow more than 1.2 times as fast as the text, or if
peak memory grows more than half as fast.
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
"""Text per WET file, in megabytes."""
PAGE = (15, 60)
"""Smallest and largest number of sentences of a page."""
EXACT, NEAR = 0.02, 0.05
"""Shares of pages that are exact copies and near copies."""
RECENT = 10_000
"""Number of latest pages of which one is copied, at least."""
SPOILT = 0.02
"""Share of changed words in a near copy."""
MOST_TIME, MOST_MEMORY = 1.2, 0.5
"""Largest growth of CPU seconds and of memory, relative to the growth of the text."""


def pages(sentences: list[str], size: float, seed: int) -> Iterator[str]:
    """Pages of `size` bytes in all."""
    rng, recent, made = random.Random(seed), [], 0
    words = sorted({word for sentence in sentences[:2000] for word in sentence.split()})
    while made < size:
        kind = rng.random()
        if recent and kind < EXACT:
            page = rng.choice(recent)
        elif recent and kind < EXACT + NEAR:
            page = spoilt(rng.choice(recent), SPOILT, words, rng)
        else:
            drawn = rng.choices(sentences, k=rng.randint(*PAGE))
            page = "\n".join(" ".join(drawn[first : first + 5]) for first in range(0, len(drawn), 5))
        recent = [*recent[-RECENT:], page] if len(recent) >= 2 * RECENT else recent
        recent.append(page)
        made += len(page.encode())
        yield page


def write_crawl(folder: Path, sentences: list[str], size: float, seed: int) -> tuple[int, int]:
    """Write the WET files. Returns (number of pages, bytes of text)."""
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
    """Make a crawl and its corpus. Returns sizes, times and peak memory (the largest of all sizes so far)."""
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
    """Messages about quantities that grow too fast from one size to the next."""
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
        raise ConfigError("--mb must be ascending sizes above 0, because peak memory includes all earlier sizes")
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
