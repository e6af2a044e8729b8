"""Measure how much planted junk the steps of a corpus find, and show that a model learns better from the kept text.

    python tools/prove_corpus.py --data ../shared/data --output docs/benchmarks/corpus_proof_cpu.json

It makes a raw crawl of --data: clean pages of four kinds, junk of seven kinds, pages in other languages, exact and near
copies, and evaluation text and addresses within clean pages, all in known amounts and drawn by --seed. The command
`megagpt data corpus` filters it with --recipe. For each planted kind it reports the found share (recall), and which
steps found it; for each step, the planted share of the dropped pages (precision).

Then the model of experiment=demo learns from the raw crawl, from the filtered crawl, and from the filtered crawl mixed
with a curated set, with the same number of tokens each and with several --seeds; the tokenizer is the raw crawl's. It
fails unless the mean loss on held-out clean pages is lower after the filtered text than after the raw text, and also
lower after the mixed text.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from measured_on import measured_on
from planted_crawl import ADDRESS, COPIES, DROPPED, EVALUATION, EVALUATIONS, Crawl, Raw, make_crawl
from raw_crawl import url_of, write_wet

from megagpt.data.corpus.shards import read_shard
from megagpt.data.corpus.text.decontamination.words import plain_words
from megagpt.data.corpus.text.inputs.read import read_unit
from megagpt.data.corpus.text.inputs.units import list_units
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.log import run_tool

RUNS = ("raw", "filtered", "mixed")
CRAWL_WEIGHT = 0.6
"""Weight of the crawl in the mixture, as in GPT-3's; the curated set has the rest."""
NEEDED = ("duplicates.documents=true", "urls.lists=small", "pii.emails=true", "pii.addresses=true")
"""Changes of the recipe, so that it searches for everything that was planted."""
SIMILAR = ("exact duplicate", "near-duplicate")
NGRAM = 13


class Outcome(NamedTuple):
    """The kept, dropped and changed pages of the crawl, by their indices."""

    kept: dict[int, str]
    """Text of each kept page, its pieces joined by line breaks."""
    dropped: dict[int, tuple[str, str]]
    """(rule, reason) of each dropped page."""
    changed: dict[str, set[int]]
    """Indices of the pages with each kind of change, such as "e-mail address"."""


def main() -> None:
    """Plant, filter, count; train, measure; print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/prove_corpus"), help="(default: %(default)s)")
    parser.add_argument("--mb", type=float, default=4, help="clean text, before planting (default: %(default)s)")
    parser.add_argument("--recipe", default="fineweb", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the crawl (default: %(default)s)")
    parser.add_argument("--train-tokens", type=int, default=600_000, help="of a run; 0: none (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the runs (default: 1 2 3)")
    parser.add_argument("--ranks", type=int, default=2, help="processes that train (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.train_tokens < 0 or args.mb <= 0:
        raise ConfigError("--train-tokens must be 0 or more, and --mb above 0")
    crawl = make_crawl(args.data, args.mb, args.seed)
    outcome = make_corpus(args, crawl)
    result: dict[str, Any] = measured_on("torch", "megatron-core", "datatrove") | {
        "recipe": args.recipe,
        "pages": len(crawl.pages),
        "planted": planted_table(crawl.pages, outcome),
        "steps": steps_table(crawl.pages, outcome),
    }
    show(result)
    if args.train_tokens:
        result["training"] = train(args, crawl)
        print(json.dumps(result["training"], indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    means = result.get("training", {}).get("mean_loss", {})
    if worse := [name for name in RUNS[1:] if means and means[name] >= means["raw"]]:
        raise MegaGPTError(f"{' and '.join(worse)} text does not give a lower loss on clean text than raw text")


def megagpt(*arguments: object) -> None:
    """Run a command of megagpt. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "megagpt.cli", *map(str, arguments)], check=True)


def make_corpus(args: argparse.Namespace, crawl: Crawl) -> Outcome:
    """Write the crawl, filter it with the command, and return the outcome of every page."""
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    wet = folder / "raw.warc.wet.gz"
    write_wet(wet, [page.text for page in crawl.pages])
    settings = [word for change in NEEDED for word in ("--set", change)]
    against = [word for name in EVALUATIONS for word in ("--decontaminate", args.data / name)]
    sampled = ("--samples", len(crawl.pages) + 1)  # the report then names every page
    command = ("data", "corpus", wet, "--kind", "web", "--recipe", args.recipe, *settings, *against, *sampled)
    megagpt(*command, "--workers", args.ranks, "--output", folder / "filtered")
    return read_outcome(folder / "filtered", wet)


def read_outcome(corpus: Path, wet: Path) -> Outcome:
    """The outcome of all pages of the WET file from which the corpus was made. Raises MegaGPTError if one is lost."""
    report = json.loads((corpus / "report.json").read_bytes())
    (unit,) = list_units("web", [wet])
    records = [record for record in read_unit(unit, "web") if getattr(record, "url", None)]
    place_of = {record.source: place for place, record in enumerate(records)}
    kept: dict[int, str] = {}
    for name in report["shards"]:
        for record in read_shard(corpus / name):
            place = place_of[record["source"]]
            if record["url"] != url_of(place):
                raise MegaGPTError(f"{record['source']} has the URL {record['url']}, not {url_of(place)}")
            kept[place] = "\n".join([kept[place], record["text"]] if place in kept else [record["text"]])
    dropped = {
        place_of[sample["source"]]: (rule, sample["reason"])
        for rule, count in report["dropped"].items()
        for sample in count["samples"]
        if sample["source"] in place_of
    }
    changed = {
        kind: {place_of[sample["source"]] for sample in count["samples"]} for kind, count in report["changed"].items()
    }
    if len(kept) + len(dropped) != len(records) or kept.keys() & dropped.keys():
        raise MegaGPTError(f"of {len(records)} pages, {len(kept)} are kept and {len(dropped)} dropped")
    return Outcome(kept, dropped, changed)


def planted_table(pages: list[Raw], outcome: Outcome) -> dict[str, Any]:
    """For each planted kind: the planted and found numbers, the recall, and the rules that found it."""
    table = {}
    for kind in (*DROPPED, *COPIES, EVALUATION, ADDRESS):
        found: list[str | None] = []
        for place, page in enumerate(pages):
            if page.kind == kind:
                found += _found(place, page, pages, outcome)
        rules = Counter(rule for rule in found if rule)
        table[kind] = {
            "planted": len(found),
            "found": rules.total(),
            "recall": round(rules.total() / max(1, len(found)), 4),
            "by": dict(rules.most_common()),
        }
    return table


def _found(place: int, page: Raw, pages: list[Raw], outcome: Outcome) -> Iterator[str | None]:
    """For each planted item of a page, the rule that found it, or None."""
    rule = outcome.dropped.get(place, (None, None))[0]
    if page.kind in DROPPED:
        yield rule
    elif page.kind in COPIES:
        pair = (rule, outcome.dropped.get(page.origin, (None, None))[0])
        yield next((name for name in pair if name in SIMILAR), None) or next(filter(None, pair), None)
    else:
        text = outcome.kept.get(place, "")
        for planted in page.planted:
            yield rule or (None if _holds(text, planted, page.kind) else "cut out")


def _holds(text: str, planted: str, kind: str) -> bool:
    """Whether a kept text still has an address, or a run of words of a passage."""
    if kind == ADDRESS:
        return planted in text
    words, passage = (b" ".join(plain_words(part)) for part in (text, planted))
    parts = passage.split(b" ")
    return any(b" ".join(parts[first : first + NGRAM]) in words for first in range(len(parts) - NGRAM + 1))


def steps_table(pages: list[Raw], outcome: Outcome) -> dict[str, Any]:
    """For each step that drops pages: the number of dropped pages, how many of them were planted, and the rest by kind.

    Of a copy and its original either may be dropped, so originals count as planted for these steps.
    """
    copied = {page.origin for page in pages}
    table: dict[str, Counter[str]] = {}
    for place, (rule, _) in outcome.dropped.items():
        kind = pages[place].kind
        if rule in SIMILAR:
            right = kind in COPIES or place in copied
        else:
            right = kind in DROPPED or (rule == "contamination" and kind == EVALUATION)
        table.setdefault(rule.partition(": ")[0], Counter())["planted" if right else kind] += 1
    return {
        step: {
            "dropped": counts.total(),
            "planted": counts["planted"],
            "precision": round(counts["planted"] / counts.total(), 4),
            "others": {kind: count for kind, count in counts.items() if kind != "planted"},
        }
        for step, counts in table.items()
    } | _changes(pages, outcome)


def _changes(pages: list[Raw], outcome: Outcome) -> dict[str, Any]:
    """For each kind of change: the number of changed pages, how many of them had planted text, and the rest by kind."""
    wanted = {"overlap with evaluations": EVALUATION, "e-mail address": ADDRESS, "IP address": ADDRESS}
    table = {}
    for change, kind in wanted.items():
        places = outcome.changed.get(change, set())
        right = sum(pages[place].kind == kind for place in places)
        others = Counter(pages[place].kind for place in places if pages[place].kind != kind)
        precision = round(right / len(places), 4) if places else None
        table[change] = {"changed": len(places), "planted": right, "precision": precision, "others": dict(others)}
    return table


def show(result: dict[str, Any]) -> None:
    """Print both tables."""
    print(f"{'planted':28} {'number':>7} {'found':>7} {'recall':>8}  by")
    for kind, row in result["planted"].items():
        by = ", ".join(f"{rule} {count}" for rule, count in row["by"].items())
        print(f"{kind:28} {row['planted']:7} {row['found']:7} {row['recall']:8.1%}  {by}")
    print(f"\n{'step':28} {'pages':>7} {'planted':>7} {'precision':>9}  others")
    for step, row in result["steps"].items():
        precision = "" if row["precision"] is None else f"{row['precision']:.1%}"
        others = ", ".join(f"{kind} {count}" for kind, count in row["others"].items())
        print(f"{step:28} {row.get('dropped', row.get('changed')):7} {row['planted']:7} {precision:>9}  {others}")


def train(args: argparse.Namespace, crawl: Crawl) -> dict[str, Any]:
    """Losses of a model on the held-out pages for each kind of text and seed, and their means."""
    corpora = write_corpora(args, crawl)
    losses: dict[str, list[float]] = {name: [] for name in RUNS}
    for seed in args.seeds:
        for name in RUNS:
            run = f"{name}_{seed}"
            megagpt(
                "train",
                *(("--nproc-per-node", args.ranks) if args.ranks > 1 else ()),
                "experiment=demo",
                "model=demo",
                "optim=demo",
                f"runs_dir={args.folder}/runs",
                f"run_name={run}",
                f"seed={seed}",
                f"data.tokenizer={args.folder}/tokenizer.json",
                f"data.corpora={corpora[name]}",
                "data.split=[1,0,0]",
                *(f"optim.{key}={args.train_tokens}" for key in ("train_tokens", "decay_tokens")),
                f"optim.warmup_tokens={args.train_tokens // 20}",
                "stage.sample_prompts=[]",
                "stage.eval_interval=0",
            )
            losses[name].append(held_out_loss(args.folder / "runs" / run, args.folder / "held_out"))
    return {
        "train_tokens": args.train_tokens,
        "seeds": args.seeds,
        "held_out_pages": len(crawl.held_out),
        "tokens": {name: json.loads((args.folder / f"{name}.json").read_bytes())["tokens"] for name in TEXTS},
        "loss": losses,
        "mean_loss": {name: statistics.mean(values) for name, values in losses.items()},
    }


TEXTS = ("raw", "filtered", "curated", "held_out")


def write_corpora(args: argparse.Namespace, crawl: Crawl) -> dict[str, str]:
    """Tokenize all texts. Returns the value of data.corpora for each kind of run."""
    folder = args.folder
    texts = {"raw": [page.text for page in crawl.pages], "curated": crawl.curated, "held_out": crawl.held_out}
    for name, parts in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in parts))
    tokenizer = folder / "tokenizer.json"
    megagpt("data", "tokenizer", folder / "raw.jsonl", "--vocab-size", 4096, "--output", tokenizer)
    for name in TEXTS:
        source = folder / "filtered" if name == "filtered" else folder / f"{name}.jsonl"
        shards = sorted(source.glob("*.jsonl.zst")) if source.is_dir() else [source]
        megagpt("data", "preprocess", *shards, "--tokenizer", tokenizer, "--output", folder / name)
    megagpt(
        "data",
        "mixture",
        f"crawl={folder}/filtered.json",
        f"curated={folder}/curated.json",
        "--weights",
        f"crawl={CRAWL_WEIGHT},curated={1 - CRAWL_WEIGHT}",
        "--train-tokens",
        args.train_tokens,
        "--output",
        folder / "mixture.yaml",
    )
    mixture = yaml.safe_load((folder / "mixture.yaml").read_text())["corpora"]
    mixed = ",".join(f"{{path:{one['path']},weight:{one['weight']}}}" for one in mixture)
    return {name: f"[{{path:{folder / name}}}]" for name in RUNS[:2]} | {"mixed": f"[{mixed}]"}


def held_out_loss(run: Path, corpus: Path) -> float:
    """Nats per token of a run's model on a tokenized corpus, without a tenth, since loaders need a training split."""
    from megagpt.config.schema import CorpusConfig, ParallelConfig
    from megagpt.data.loader import PretrainLoader
    from megagpt.evaluate.held_out import evaluate
    from megagpt.parallel import launch
    from megagpt.stages.weights import load_model
    from megagpt.train.objectives import LanguageModelObjective

    try:
        config, engine, _ = load_model(run, ParallelConfig(micro_batch_size=4), LanguageModelObjective())
        data = replace(config.data, corpora=(CorpusConfig(path=str(corpus)),), split=(0.1, 0.0, 0.9))
        return evaluate(engine, PretrainLoader(replace(config, data=data)), "test", None)["loss"]
    finally:
        launch.shutdown()


if __name__ == "__main__":
    run_tool(main)
