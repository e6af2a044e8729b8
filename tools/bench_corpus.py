"""Time every step of a corpus of text, and the whole chain from WET files, and compare with datatrove's blocks.

    python tools/bench_corpus.py --data ../shared/data --output docs/benchmarks/corpus_cpu.json

Steps: one core, the same pages of the web and of an encyclopaedia, and each step alone, including its splitting into
words. Chain: the tool writes WET files with these pages and as much text in other languages (eight tenths German and
French), reads them, and runs all steps of the recipes fineweb and gopher for single documents, without the rules about
addresses; datatrove runs its blocks in the same order, and splits words by its default, spaCy. Both sides take turns,
and each is first in half of them. Figures are medians; megabytes are of UTF-8 text.

It fails if a chain is less than 20 times as fast as datatrove's, or if datatrove's blocks, with our words and
sentences, keep other documents or other text. The search for duplicates is timed per document, with random keys.
`plan_corpus` computes hours from all these rates.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from corpus_steps import (
    WITHOUT_URLS,
    Step,
    make_language_model,
    our_splitter,
    read_ours,
    read_theirs,
    run_ours,
    run_theirs,
    search_seconds,
    steps,
    their_chain,
)
from measured_on import measured_on
from raw_crawl import clean_pages, foreign_pages, write_wet

from megagpt.data.corpus.text.recipe import load_recipe
from megagpt.errors import MegaGPTError
from megagpt.log import run_tool

REQUIRED = 20.0
"""Smallest ratio of a chain's speed to datatrove's."""
RECIPES = ("fineweb", "gopher")
SHORTEST = 0.5
"""Smallest duration of a measurement in seconds; faster work is repeated."""
OURS, THEIRS = "megagpt", "datatrove"
PACKAGES = ("datatrove", "spacy", "numpy", "xxhash", "fastwarc", "warcio", "pycld2", "fasttext-community")


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, seconds of CPU time) that `work` takes."""
    times, began, cpu = 0, time.perf_counter(), time.process_time()
    while times == 0 or time.perf_counter() - began < SHORTEST:
        work()
        times += 1
    return (time.perf_counter() - began) / times, (time.process_time() - cpu) / times


def compare(step: Step, size: int, repeats: int) -> dict[str, Any]:
    """Time a step on both sides, in turns, after a warm-up. size: bytes of its text"""
    sides = {OURS: step.ours} | ({THEIRS: step.theirs} if step.theirs else {})
    for work in sides.values():
        work()  # warm-up, which also loads models
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            taken[name].append(timed(sides[name]))
    result: dict[str, Any] = {"bytes": size}
    for which, seconds, rate, ratio in (
        (0, "seconds", "mb_per_second", "ratio"),
        (1, "cpu_seconds", "mb_per_cpu_second", "ratio_by_cpu_time"),
    ):
        values = {name: [round(pair[which], 4) for pair in pairs] for name, pairs in taken.items()}
        medians = {name: statistics.median(pair[which] for pair in pairs) for name, pairs in taken.items()}
        result[seconds] = values
        result[rate] = {name: round(size / 1e6 / median, 3) for name, median in medians.items()}
        result[ratio] = round(medians[THEIRS] / medians[OURS], 1) if THEIRS in medians else None
    print(f"{step.name}: {result['mb_per_second']}, ratio {result['ratio']}, by CPU {result['ratio_by_cpu_time']}")
    return result


def search(folder: Path, documents: int, repeats: int) -> dict[str, Any]:
    """Documents per CPU second of each phase of the search for duplicates, medians of `repeats` runs."""
    runs = [search_seconds(folder / f"search{repeat}", documents) for repeat in range(repeats)]
    rates = {name: documents / max(1e-9, statistics.median(run[name] for run in runs)) for name in runs[0]}
    print(f"search, documents a CPU second: { {name: round(rate) for name, rate in rates.items()} }")
    return {"documents": documents, "documents_per_cpu_second": {name: round(rate) for name, rate in rates.items()}}


def verdicts(wet: Path, recipe: str, language_model: Path) -> dict[str, Any]:
    """Compare the documents of a WET file that both sides keep, with the same words, sentences and languages for both.

    Also counts the differences when datatrove splits words and sentences itself.
    """
    same = [WITHOUT_URLS, "pii=null"]  # the placeholders of secrets differ
    ours_recipe = load_recipe(recipe, same)
    if ours_recipe.languages:
        ours_recipe = load_recipe(recipe, [*same, f"languages.model={language_model}"])
    ours = {url: document.text for url, document in run_ours(wet, ours_recipe).items()}
    theirs = run_theirs(wet, their_chain(ours_recipe, language_model, our_splitter()))
    default = run_theirs(wet, their_chain(ours_recipe, language_model))
    different = sorted(url for url in ours.keys() | theirs.keys() if ours.get(url) != theirs.get(url))
    return {
        "documents": sum(1 for _ in read_ours(wet)),
        "kept": len(ours),
        "different": len(different),
        "different_with_spacy": sum(ours.get(url) != default.get(url) for url in ours.keys() | default.keys()),
        "examples": different[:10],
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures. folder: for temporary files"""
    half = options.mb * 1e6 / 2
    english = [text for kind in ("web", "encyclopaedia") for text in clean_pages(options.data, kind, half)]
    foreign = foreign_pages(options.data, 2 * half)
    model = folder / "languages.bin"
    make_language_model(options.data, model)
    size = sum(len(text.encode()) for text in english)
    result: dict[str, Any] = {"documents": len(english), "bytes": size, "repeats": options.repeats, "steps": {}}
    for step in steps(english, options.data, model, folder):
        result["steps"][step.name] = compare(step, size, options.repeats)
    result["search"] = search(folder, options.search_documents, options.repeats)
    wet = folder / "wet" / "crawl.warc.wet.gz"
    wet.parent.mkdir()
    size = write_wet(wet, [text for pair in in_turns(english, foreign) for text in pair])
    read = Step("read WET", lambda: list(read_ours(wet)), lambda: list(read_theirs(wet)))
    result["steps"][read.name] = compare(read, size, options.repeats)
    result["chains"], result["verdicts"] = {}, {}
    for name in RECIPES:
        recipe = load_recipe(name, [WITHOUT_URLS])
        blocks = their_chain(recipe, model)
        chain = Step(f"chain {name}", partial(run_ours, wet, recipe), partial(run_theirs, wet, blocks))
        result["chains"][name] = compare(chain, size, options.repeats)
        result["verdicts"][name] = verdicts(wet, name, model)
        print(f"verdicts {name}: {result['verdicts'][name]}")
    return result


def in_turns(some: list[str], others: list[str]) -> list[list[str]]:
    """Pairs of items of both lists; the longer list's remaining items stand alone."""
    return [[*some[place : place + 1], *others[place : place + 1]] for place in range(max(len(some), len(others)))]


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--mb", type=float, default=0.8, help="English text in megabytes (default: %(default)s)")
    parser.add_argument("--search-documents", type=int, default=500_000, help="random (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write, judge."""
    from loguru import logger

    logger.disable("datatrove")
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        result = measured_on(*PACKAGES) | measure(options, Path(name))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if other := {name: found["examples"] for name, found in result["verdicts"].items() if found["different"]}:
        raise MegaGPTError(f"datatrove's blocks with our words keep other documents or text: {other}")
    if slow := {name: found["ratio"] for name, found in result["chains"].items() if found["ratio"] < REQUIRED}:
        raise MegaGPTError(f"chains are less than {REQUIRED:g} times as fast as datatrove's: {slow}")


if __name__ == "__main__":
    run_tool(main)
