"""Plan `megagpt data corpus` for a whole snapshot of a crawl: tasks, hours, memory and bytes of every phase.

    python tools/plan_corpus.py --rates docs/benchmarks/corpus_cpu.json --pages 2.64e9 --cores 1000

`bench_corpus` measured the rates on one core; nothing else is measured. The size of the snapshot, the share that the
rules keep, and the share with copies are options. --report, the report.json of a corpus from some of its files, gives
the size of a page and the kept share instead. Memory is the upper limit of each phase; phases without a figure hold one
document and a model. The plan assumes that disks and networks are fast enough.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.data.corpus.duplicates.exact import BYTES_A_ROW
from megagpt.data.corpus.duplicates.minhash import MinHash
from megagpt.data.corpus.duplicates.near import BYTES_A_CANDIDATE, BYTES_A_KEY
from megagpt.data.corpus.duplicates.steps import ranges
from megagpt.data.corpus.text.build import MOST_SHARDS
from megagpt.data.corpus.text.options import SHARD_MB
from megagpt.errors import ConfigError
from megagpt.log import run_tool


@dataclass(frozen=True)
class Snapshot:
    """Measured or assumed properties of a crawl."""

    pages: float
    """Number of pages."""
    page_bytes: float
    """Mean UTF-8 bytes of a page's text."""
    stored: float
    """Bytes on disk per byte of text, compressed, in the crawl and in shards."""
    kept_pages: float
    """Share of the pages that the rules for single documents keep."""
    kept_bytes: float
    """Share of the text that these rules keep."""
    alike: float
    """Share of the kept pages that share a part of their signature with another page."""


@dataclass(frozen=True)
class Planned:
    """A phase."""

    name: str
    tasks: int
    cpu_seconds: float
    """CPU seconds of all tasks."""
    read: float
    """Bytes that all tasks read."""
    written: float
    """Bytes that all tasks write."""
    memory: float | None = None
    """Largest memory of a task in bytes; None if it does not grow with the corpus."""


def plan(rates: dict[str, Any], crawl: Snapshot, recipe: str) -> list[Planned]:
    """The phases in order. rates: the output of `bench_corpus`. Raises ConfigError if one is missing."""
    text, kept, left = crawl.pages * crawl.page_bytes, 0.0, crawl.pages * crawl.kept_pages
    kept = text * crawl.kept_bytes
    shards = max(1, min(MOST_SHARDS, math.ceil(text * crawl.stored / (SHARD_MB * 1e6))))
    parts, setting = ranges(shards), MinHash()
    keys, candidates = left * setting.buckets, left * crawl.alike
    table, edges, names = 16 * keys, 16 * candidates, 24 * candidates * setting.buckets

    def seconds(size: float, *steps: str) -> float:
        return sum(size / 1e6 / _rate(rates, "steps", name) for name in steps)

    def search(name: str) -> float:
        return left / _rate(rates, "search", name)

    chain = text / 1e6 / _rate(rates, "chains", recipe)
    disk = kept * crawl.stored
    return [
        Planned("filter", shards, chain + seconds(kept, "write shard"), text * crawl.stored, disk + 40 * left),
        Planned("exact", parts, search("exact"), 24 * left, 16 * candidates, left / parts * BYTES_A_ROW),
        Planned("sign", shards, seconds(kept, "read shard", "minhash signatures"), disk, table),
        Planned("match", parts, search("match"), table, edges, keys / parts * BYTES_A_KEY),
        Planned("components", 1, search("components"), edges, edges, candidates * BYTES_A_CANDIDATE),
        Planned("split", shards, search("split"), table + edges, names),
        Planned("cluster", parts, search("cluster"), names, edges, names / 24 / parts * BYTES_A_KEY),
        Planned("count", shards, seconds(kept, "read shard", "decontamination count"), disk, 0.0),
        Planned("write", shards, seconds(kept, "read shard", "decontamination count", "write shard"), disk, disk),
    ]


def _rate(rates: dict[str, Any], group: str, name: str) -> float:
    """Megabytes per CPU second; for the search, documents per CPU second. Raises ConfigError if it is missing."""
    found = rates.get(group, {})
    if group == "search":
        rate = found.get("documents_per_cpu_second", {}).get(name)
    else:
        rate = found.get(name, {}).get("mb_per_cpu_second", {}).get("megagpt")
    if not rate:
        raise ConfigError(f"--rates has no rate of {group} {name}: make the file again with tools/bench_corpus.py")
    return rate


def hours(phases: list[Planned], cores: int) -> float:
    """Hours from the first task to the last on `cores` cores. Each phase waits for the one before it."""
    return sum(math.ceil(phase.tasks / cores) * phase.cpu_seconds / phase.tasks for phase in phases) / 3600


def as_markdown(phases: list[Planned], cores: int) -> str:
    """A table of the phases, and the sums."""
    lines = ["| phase | tasks | CPU hours | minutes a task | memory a task | GB read | GB written |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for phase in phases:
        memory = "" if phase.memory is None else f"{phase.memory / 1e9:,.2f} GB"
        minutes = phase.cpu_seconds / phase.tasks / 60
        cells = (f"{phase.tasks:,}", f"{phase.cpu_seconds / 3600:,.2f}", f"{minutes:,.2f}", memory)
        lines.append(
            f"| {' | '.join((phase.name, *cells, f'{phase.read / 1e9:,.1f}', f'{phase.written / 1e9:,.1f}'))} |"
        )
    cpu, read, written = (sum(getattr(phase, name) for phase in phases) for name in ("cpu_seconds", "read", "written"))
    lines += ["", f"{cpu / 3600:,.1f} CPU hours; {read / 1e12:,.2f} TB read and {written / 1e12:,.2f} TB written."]
    return "\n".join([*lines, f"On {cores:,} cores: {hours(phases, cores):,.1f} hours."])


def snapshot(args: argparse.Namespace) -> Snapshot:
    """The snapshot of the command line; a report replaces the size of a page and the kept shares."""
    page_bytes, kept_pages, kept_bytes = args.page_bytes, args.kept, args.kept
    if args.report:
        report = json.loads(args.report.read_bytes())
        found = report["input"]
        late = ("duplicate URL", "exact duplicate", "duplicate passages", "near-duplicate", "contamination")
        dropped = [count for rule, count in report["dropped"].items() if rule not in late]
        kept_pages, kept_bytes = (
            1 - sum(count[name] for count in dropped) / max(1, found[name]) for name in ("documents", "bytes")
        )
        page_bytes = found["bytes"] / max(1, found["documents"])
    return Snapshot(args.pages, page_bytes, args.stored, kept_pages, kept_bytes, args.alike)


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=Path, required=True, metavar="FILE", help="written by bench_corpus")
    parser.add_argument("--pages", type=float, required=True, help="number of pages of the snapshot")
    parser.add_argument("--page-bytes", type=float, default=5000, help="text of a page (default: %(default)s)")
    parser.add_argument(
        "--stored", type=float, default=0.4, help="bytes on disk per byte of text (default: %(default)s)"
    )
    parser.add_argument("--kept", type=float, default=0.15, help="share that the rules keep (default: %(default)s)")
    parser.add_argument("--alike", type=float, default=0.3, help="share of that with copies (default: %(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="report.json, for --page-bytes and --kept")
    parser.add_argument("--recipe", default="fineweb", help="whose chain was timed (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=1000, help="(default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Read the rates, print the plan."""
    args = parse()
    if not args.rates.is_file():
        raise ConfigError(f"--rates {args.rates}: there is no such file; tools/bench_corpus.py writes it")
    rates, crawl = json.loads(args.rates.read_bytes()), snapshot(args)
    print(
        f"{crawl.pages:.3g} pages of {crawl.page_bytes:,.0f} bytes of text; rules keep {crawl.kept_pages:.1%} of the "
        f"pages and {crawl.kept_bytes:.1%} of the text; {crawl.alike:.0%} of those have copies.\n"
    )
    print(as_markdown(plan(rates, crawl, args.recipe), args.cores))


if __name__ == "__main__":
    run_tool(main)
