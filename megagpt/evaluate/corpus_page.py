"""Builds the page of a corpus: what each step dropped, the time of each step, and the duplicates."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.data.corpus.duplicates.minhash import MinHash
from megagpt.data.corpus.job import read_report
from megagpt.errors import DataError
from megagpt.evaluate.charts import Chart, Series, build_charts
from megagpt.evaluate.page import section, table, tiles

READING = "reading"
"""Key of the first step, which drops unusable records."""
STEPS = {
    READING: "Reading: records that are no text",
    "urls": "Addresses",
    "extraction": "Text of HTML",
    "empty": "Empty",
    "languages": "Language",
    "lines": "Line rules",
    "c4": "C4's rules",
    "gopher_quality": "Gopher's rules about quality",
    "gopher_repetition": "Gopher's rules about repetition",
    "fineweb": "FineWeb's rules",
    "quality": "Classifier of quality",
    "pii": "Personal data",
    "duplicate URL": "Duplicate addresses",
    "exact duplicate": "Exact duplicates",
    "duplicate passages": "Pages of duplicate passages",
    "near-duplicate": "Near-duplicates",
    "contamination": "Text of evaluations",
}
"""{step: title on the page}, in the order of the steps. A rule's name begins with its step: "c4: few sentences"."""
PHASES = {
    "filter": "Reading, and writing what the rules leave",
    **dict.fromkeys(("signatures", "match", "components", "split", "cluster"), "Near-duplicates"),
    **dict.fromkeys(("count", "add counts"), "Counting text of evaluations"),
    "write": "Writing",
    "publish": "Writing",
}
"""{phase of the work: title on the page}, without the phases of exact duplicates."""
SAME = ("hashes_", "same_")
"""Prefixes of the phases of exact duplicates."""
OVERLAPS = "overlap with evaluations"
"""Name of the change that removes text of evaluations from a document."""


class Dropped(NamedTuple):
    """The amount that a step or a rule drops."""

    name: str
    documents: int
    bytes: int


def write_corpus_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page about the corpus in `folder`; returns its path, by default report.html in the folder.

    Raises DataError when the folder has no report of a corpus, ConfigError without plotly.
    """
    report = read_report(folder)
    if report is None:
        raise DataError(f"{folder}: there is no report.json, so it is not a corpus of `megagpt data corpus`")
    timing = folder / "timing.json"
    seconds = json.loads(timing.read_bytes()) if timing.is_file() else {}
    output = output or folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(build_corpus_page(folder.absolute().name, report, seconds), encoding="utf-8")
    return output


def build_corpus_page(name: str, report: dict[str, Any], seconds: dict[str, dict[str, float]]) -> str:
    """The page's HTML. report: content of report.json. seconds: content of timing.json, or {}. All text is escaped."""
    job, unit = report["job"], _unit(report)
    facts = [f"of {job['kind']}" if "kind" in job else "of source code", *map(str, job["inputs"][:4])]
    facts += [f"and {len(job['inputs']) - 4} more inputs"] if len(job["inputs"]) > 4 else []
    above = [
        _tiles(report, seconds),
        section(f"What became of the {unit}", _fall(report)),
        section("Where the time went", _times(seconds)),
        section("Text of evaluations", _decontamination(report)),
    ]
    charts = [*_near_charts(report.get("near_duplicates")), *_language_chart(report["corpus"]["languages"])]
    below = [
        _largest(report.get("near_duplicates")),
        section("Changed", _changed(report)),
        section("Samples", _samples(report)),
    ]
    return build_charts(f"Corpus {name}", facts, "".join(above), charts, "".join(below), style=["corpus.css"])


def _unit(report: dict[str, Any]) -> str:
    """The counted unit: "files" for code, "documents" for text."""
    return "files" if "files" in report["input"] else "documents"


def _tiles(report: dict[str, Any], seconds: dict[str, dict[str, float]]) -> str:
    found, corpus, unit = report["input"], report["corpus"], _unit(report)
    cpu = sum(parts["total"] for parts in seconds.values())
    copies = sum(report["dropped"].get(rule, {unit: 0})[unit] for rule in ("exact duplicate", "near-duplicate"))
    pieces = corpus.get("pieces", 0)
    return tiles(
        ("Input", f"{found[unit]:,}", f"{unit}, {_mb(found['bytes'])}"),
        ("Kept", f"{corpus['documents']:,}", f"{corpus['documents'] / max(1, found[unit]):.1%} of the {unit}"),
        ("Text kept", _mb(corpus["text_bytes"]), f"{pieces:,} pieces" if pieces > corpus["documents"] else ""),
        ("Copies removed", f"{copies:,}", f"{copies / max(1, found[unit]):.1%} of the {unit}"),
        ("CPU time", _time(cpu) if cpu else None, f"{found['bytes'] / 1e6 / cpu:.2f} MB a second" if cpu else ""),
    )


def _steps(report: dict[str, Any]) -> Iterator[tuple[Dropped, list[Dropped]]]:
    """Each step that drops anything, in order, with its rules."""
    unit = _unit(report)
    steps: dict[str, list[Dropped]] = {}
    for rule, count in report["dropped"].items():
        step, _, short = rule.partition(": ")
        # Rules of code are steps of their own; other rules without a step belong to reading.
        key = step if step in STEPS else rule if unit == "files" else READING
        steps.setdefault(key, []).append(Dropped(short or rule, count[unit], count["bytes"]))
    order = list(STEPS)
    for key in sorted(steps, key=lambda key: order.index(key) if key in STEPS else 0):
        rules = steps[key]
        total = Dropped(STEPS.get(key, key), sum(rule.documents for rule in rules), sum(rule.bytes for rule in rules))
        alone = len(rules) == 1 and rules[0].name in (key, total.name)
        yield total, [] if alone else sorted(rules, key=lambda rule: -rule.documents)


def _fall(report: dict[str, Any]) -> str:
    """A table of the steps, with bars whose left end marks the share that is left after the step."""
    unit, found, corpus = _unit(report), report["input"], report["corpus"]
    rows = [_fall_row(Dropped("Input", found[unit], found["bytes"]), found, unit, 0.0, "all")]
    left = found[unit]
    for step, rules in _steps(report):
        left -= step.documents
        rows.append(_fall_row(step, found, unit, left / max(1, found[unit]), "dropped"))
        rows += [_fall_row(rule, found, unit, None, "rule") for rule in rules]
    kept = Dropped("Kept", corpus["documents"], corpus["source_bytes"])
    rows.append(_fall_row(kept, found, unit, 0.0, "all"))
    head = "".join(f'<th scope="col">{name}</th>' for name in (unit, "share", "MB", "share"))
    return (
        f'<div class="scroll"><table class="numbers fall"><thead><tr><th></th><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Steps are in the order of processing; each one only sees what the steps before it kept. '
        "Shares are relative to the whole input; MB are of uncompressed records.</p>"
    )


def _fall_row(row: Dropped, found: dict[str, int], unit: str, start: float | None, style: str) -> str:
    """A row with a bar from `start`, a share of the input, or without a bar if `start` is None."""
    share = row.documents / max(1, found[unit])
    numbers = (f"{row.documents:,}", f"{share:.2%}", f"{row.bytes / 1e6:,.3f}")
    cells = "".join(f"<td>{cell}</td>" for cell in (*numbers, f"{row.bytes / max(1, found['bytes']):.2%}"))
    bar = "" if start is None else _bar(start, share)
    return f'<tr class="{style}"><th scope="row">{escape(row.name)}</th><td class="track">{bar}</td>{cells}</tr>'


def _bar(start: float, width: float) -> str:
    return f'<div><i style="left:{start:.2%};width:{width:.2%}"></i></div>'


def _times(seconds: dict[str, dict[str, float]]) -> str:
    """Bars of CPU time by steps and phases, in descending order."""
    spent = {}
    for phase, parts in seconds.items():
        inner = {STEPS.get(part, part): value for part, value in parts.items() if part != "total"}
        spent |= inner
        rest = "Exact duplicates" if phase.startswith(SAME) else PHASES.get(phase, phase.capitalize())
        spent[rest] = spent.get(rest, 0.0) + parts["total"] - sum(inner.values())
    total = sum(spent.values())
    if not total:
        return ""
    rows = "".join(
        f'<tr class="time"><th scope="row">{escape(name)}</th><td class="track">{_bar(0, value / total)}</td>'
        f"<td>{value / total:.1%}</td><td>{value:,.2f} s</td></tr>"
        for name, value in sorted(spent.items(), key=lambda item: -item[1])
        if value >= 0.0005 * total
    )
    return f'<div class="scroll"><table class="numbers fall"><tbody>{rows}</tbody></table></div>'


def _decontamination(report: dict[str, Any]) -> str:
    """The text shared with evaluations; empty if the corpus was not decontaminated."""
    files = report["job"].get("decontaminate") or []
    if not files:
        return ""
    cut = report.get("changed", {}).get(OVERLAPS, {"times": 0, "documents": 0})
    dropped = report["dropped"].get("contamination", {}).get(_unit(report), 0)
    rows = [("Compared with", [", ".join(Path(name).name for name in files)])]
    if "changed" in report:
        rows.append(("Overlaps cut out", [f"{cut['times']:,}, in {cut['documents']:,} of the documents that stay"]))
    rows.append(("Dropped as a whole", [f"{dropped:,} {_unit(report)}"]))
    return table(rows, [])


def _near_charts(near: dict[str, Any] | None) -> Iterator[Chart]:
    """Charts of MinHash's detection probability and of the clusters that were found."""
    if not near:
        return
    setting = MinHash(near["words"], near["buckets"], near["hashes"])
    similarities = [number / 100 for number in range(101)]
    chances = [setting.chance(similarity) for similarity in similarities]
    half = (1 - 0.5 ** (1 / setting.buckets)) ** (1 / setting.hashes)
    yield Chart(
        "Chance that a near-duplicate is found",
        [
            Series("chance", similarities, chances),
            Series(f"one half at {half:.2f}", [half, half], [0, 1], "reference"),
            *([Series("verified from", [near["verify"]] * 2, [0, 1], "reference")] if near["verify"] else []),
        ],
        f"{setting.buckets} buckets of {setting.hashes} hashes",
        f"Jaccard similarity of the runs of {setting.words} words",
        axes={"xaxis": {"range": [0, 1]}, "yaxis": {"tickformat": ".0%"}},
    )
    if sizes := near["clusters"]:
        yield Chart(
            "Clusters found",
            [Series("clusters", list(sizes), list(sizes.values()), "bar", [f"{count:,}" for count in sizes.values()])],
            "one document of each is kept",
            "documents in a cluster",
            axes={"xaxis": {"type": "category"}},
        )


def _language_chart(languages: dict[str, int], most: int = 12) -> Iterator[Chart]:
    if len(languages) > 1:
        total, names = sum(languages.values()), list(languages)[:most]
        shares = [languages[name] / total for name in names]
        texts = [f"{share:.1%}" for share in shares]
        axes = {"yaxis": {"tickformat": ".0%"}}
        yield Chart("Languages", [Series("share", names, shares, "bar", texts)], "of the documents kept", axes=axes)


def _largest(near: dict[str, Any] | None) -> str:
    """The kept documents with the most near-duplicates; collapsed."""
    rows = [(item["source"], [f"{item['documents']:,}"]) for item in (near["largest"] if near else [])]
    found = table(rows, ["near-duplicates removed"])
    return f"<details><summary>Largest clusters, by their kept documents</summary>{found}</details>" if rows else ""


def _changed(report: dict[str, Any]) -> str:
    changed = report.get("changed") or report.get("redacted", {})
    rows = [
        (kind, [f"{count.get('times', count.get('replacements')):,}", f"{count[_unit(report)]:,}"])
        for kind, count in changed.items()
    ]
    return table(rows, ["times", _unit(report)])


def _samples(report: dict[str, Any]) -> str:
    """Samples of what each rule drops, with the reasons; collapsed."""
    unit, parts = _unit(report), []
    for rule, count in report["dropped"].items():
        rows = [(sample.get("source", sample.get("path")), [sample["reason"]]) for sample in count["samples"]]
        title = f"{escape(rule)}<small>{count[unit]:,} {unit}</small>"
        parts.append(f'<details class="samples-of"><summary>{title}</summary>{table(rows, ["reason"])}</details>')
    return "".join(parts)


def _mb(size: int) -> str:
    for unit, bytes_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_:
            return f"{size / bytes_:,.4g} {unit}"
    return f"{size / 1e3:,.4g} kB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.4g} h"
