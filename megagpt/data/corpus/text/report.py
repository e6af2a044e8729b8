"""Report the kept and dropped records of a corpus of text: JSON for programs, Markdown for people."""

import json
from collections import Counter
from typing import Any

from megagpt.data.corpus.duplicates.minhash import MinHash
from megagpt.data.corpus.duplicates.steps import LARGEST, name_of
from megagpt.data.corpus.markdown import cell
from megagpt.data.corpus.tally import Count, Tally
from megagpt.data.corpus.text.filtered import Plan
from megagpt.data.unread import described, most_common

STEPS = (
    "urls",
    "extraction",
    "empty",
    "languages",
    "lines",
    "c4",
    "gopher_quality",
    "gopher_repetition",
    "fineweb",
    "quality",
    "pii",
    "duplicate URL",
    "exact duplicate",
    "duplicate passages",
    "near-duplicate",
    "contamination",
)
"""Beginnings of the names of rules, in the order of the steps; rules of reading come before them."""

FIELDS = 100
"""Number of unread fields that are listed."""

SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Similarities for which the probability of a match is reported."""


def as_json(total: Tally, job: dict[str, Any], shards: list[str], plan: Plan) -> dict[str, Any]:
    """The report of a corpus. The documents and bytes of "dropped" and "corpus" add up to "input"."""
    dropped = {
        rule: {"share": round(count.files / max(1, total.files), 6)} | _count(count)
        for rule, count in sorted(total.dropped.items(), key=lambda item: _order(item[0]))
    }
    changed = {
        kind: {"times": total.replacements[kind], "documents": count.files, "samples": _samples(count)}
        for kind, count in sorted(total.redactions.items())
    }
    return {
        "job": job,
        "input": {"documents": total.files, "bytes": total.bytes},
        "unread_fields": most_common(total.unread, FIELDS),
        "dropped": dropped,
        "changed": changed,
        "near_duplicates": _near(plan),
        "corpus": {
            "documents": total.documents,
            "pieces": total.pieces,
            "source_bytes": total.source_bytes,
            "text_bytes": total.text_bytes,
            "languages": dict(total.languages.most_common()),
        },
        "shards": shards,
    }


def _order(rule: str) -> tuple[int, str]:
    step = rule.partition(":")[0]
    return (STEPS.index(step) if step in STEPS else -1), rule


def _count(count: Count) -> dict[str, Any]:
    return {"documents": count.files, "bytes": count.bytes, "samples": _samples(count)}


def _samples(count: Count) -> list[dict[str, str]]:
    return [{"source": source, "reason": reason} for _, source, reason in count.samples]


def _near(plan: Plan) -> dict[str, Any] | None:
    """The settings of MinHash, the probabilities of a match, and the clusters that were found."""
    near = plan.recipe.duplicates and plan.recipe.duplicates.near
    if not near:
        return None
    setting = MinHash(near.words, near.buckets, near.hashes)
    sizes, largest = Counter(), []
    for path in sorted((plan.work / "clusters").glob("*.json")):
        found = json.loads(path.read_bytes())
        sizes.update(found["sizes"])
        largest += found["largest"]
    largest = sorted(largest, key=lambda item: (-item[1], item[0]))[:LARGEST]
    return {
        **vars(setting),
        "verify": near.verify,
        "chance": {str(similarity): round(setting.chance(similarity), 4) for similarity in SIMILARITIES},
        "clusters": dict(sorted(sizes.items(), key=lambda item: int(item[0].partition(" ")[0]))),
        "largest": [{"source": name_of(plan.work, place), "documents": size} for place, size in largest],
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    found, corpus, near = report["input"], report["corpus"], report["near_duplicates"]
    rows = [("input", found["documents"], found["bytes"])]
    rows += [(rule, count["documents"], count["bytes"]) for rule, count in report["dropped"].items()]
    rows += [("**kept**", corpus["documents"], corpus["source_bytes"])]
    lines = ["# Report of a corpus of text", ""]
    lines += _table(
        ("rule", "documents", "share", "MB"),
        [(name, f"{n:,}", f"{n / max(1, found['documents']):.2%}", f"{size / 1e6:,.3f}") for name, n, size in rows],
    )
    text = f"{corpus['text_bytes'] / 1e6:,.3f} MB of text in {len(report['shards'])} shards"
    lines += [f"{text}; the table counts the bytes of records as they were read, uncompressed.", ""]
    if unread := report["unread_fields"]:
        lines += [f"Fields that are not read, with their records: {cell(described(unread))}.", ""]
    if corpus["pieces"] > corpus["documents"]:
        lines += [f"The documents are {corpus['pieces']:,} pieces after text of evaluations was cut out.", ""]
    lines += ["## Documents by language", ""]
    lines += _table(("language", "documents"), [(cell(name), f"{n:,}") for name, n in corpus["languages"].items()])
    lines += ["## Changed", ""]
    changes = [(kind, f"{item['times']:,}", f"{item['documents']:,}") for kind, item in report["changed"].items()]
    lines += _table(("kind", "times", "documents"), changes)
    lines += _near_markdown(near) if near else []
    for title, items in (("Dropped", report["dropped"]), ("Changed", report["changed"])):
        for name, item in items.items():
            lines += [f"## {title}: {name} (samples)", ""]
            samples = [(cell(sample["source"]), cell(sample["reason"])) for sample in item["samples"]]
            lines += _table(("source", "reason"), samples)
    return "\n".join(lines)


def _near_markdown(near: dict[str, Any]) -> list[str]:
    verified = f", and verified to be {near['verify']:.0%} the same" if near["verify"] is not None else ""
    lines = [
        "## Near-duplicates",
        "",
        f"MinHash of runs of {near['words']} words, {near['buckets']} buckets of {near['hashes']} hashes{verified}. A "
        "pair with this Jaccard similarity is found with this probability:",
        "",
    ]
    lines += _table(
        ("similarity", *near["chance"]), [("found", *(f"{chance:.3f}" for chance in near["chance"].values()))]
    )
    lines += _table(("documents in a cluster", "clusters"), [(size, f"{n:,}") for size, n in near["clusters"].items()])
    largest = [(cell(item["source"]), f"{item['documents']:,}") for item in near["largest"]]
    return [*lines, *_table(("kept of the largest clusters", "documents like it"), largest)]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)] + [""]
