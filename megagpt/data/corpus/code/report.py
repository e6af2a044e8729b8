"""Report the kept and dropped files of a corpus: JSON for programs, Markdown for people."""

from typing import Any

from megagpt.data.corpus.markdown import cell
from megagpt.data.corpus.tally import Count, Tally

RULES = {
    "language": "in none of the languages asked for, by name or by content",
    "not a regular file": "links and special files",
    "unsafe path": "archive members whose path is absolute or leads out of the archive",
    "archive bomb": "archives that expand to more than they may; what follows in them is left out and not counted",
    "damaged archive": "archives that cannot be read; what follows in them is lost and not counted",
    "unreadable": "files that the system or the archive does not give",
    "too large": "over --max-bytes",
    "not UTF-8": "bytes that are not UTF-8 text, or NUL",
    "empty": "nothing but white space",
    "generated": "the first lines say that a program wrote it",
    "mean line": "mean line length over --max-mean-line characters",
    "longest line": "a line longer than --max-line characters",
    "alphanumeric share": "a smaller share of letters and digits than --min-alphanumeric",
    "licence": "not in --licences",
    "contamination": "shares a run of words with a --decontaminate file",
    "exact duplicate": "the same text as an earlier file",
    "near-duplicate": "MinHash finds it like another file, which is kept",
}
"""Description of the files that each rule drops, in the order of the rules."""

BEFORE_READING = list(RULES)[: list(RULES).index("not UTF-8")]
"""Rules that need only a file's name, size and place, or at most its first line."""


def read_bytes(report: dict[str, Any]) -> int:
    """Bytes of the files whose text was read and filtered."""
    unread = sum(report["dropped"][rule]["bytes"] for rule in BEFORE_READING if rule in report["dropped"])
    return report["input"]["bytes"] - unread


def as_json(total: Tally, job: dict[str, Any], shards: list[str]) -> dict[str, Any]:
    """The report of a corpus. The files and bytes of "dropped" and "corpus" add up to "input"."""
    dropped = {
        rule: {"share": round(count.files / max(1, total.files), 6)} | _count(count)
        for rule, count in sorted(total.dropped.items(), key=lambda item: list(RULES).index(item[0]))
    }
    redacted = {
        kind: {"replacements": total.replacements[kind], "files": count.files, "samples": _samples(count)}
        for kind, count in sorted(total.redactions.items())
    }
    return {
        "job": job,
        "input": {"files": total.files, "bytes": total.bytes},
        "dropped": dropped,
        "redacted": redacted,
        "corpus": {
            "documents": total.documents,
            "source_bytes": total.source_bytes,
            "text_bytes": total.text_bytes,
            "languages": dict(total.languages.most_common()),
            "licences": dict(total.licences.most_common()),
        },
        "shards": shards,
    }


def _count(count: Count) -> dict[str, Any]:
    return {"files": count.files, "bytes": count.bytes, "samples": _samples(count)}


def _samples(count: Count) -> list[dict[str, str]]:
    return [{"path": path, "reason": reason} for _, path, reason in count.samples]


def as_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    found, corpus = report["input"], report["corpus"]
    rows = [("input", found["files"], found["bytes"], "")]
    rows += [(rule, count["files"], count["bytes"], RULES[rule]) for rule, count in report["dropped"].items()]
    rows += [("**kept**", corpus["documents"], corpus["source_bytes"], "")]
    lines = ["# Report of a code corpus", "", "| rule | files | share | MB | what it drops |", "| --- " * 5 + "|"]
    lines += [
        f"| {name} | {files:,} | {files / max(1, found['files']):.2%} | {size / 1e6:,.3f} | {what} |"
        for name, files, size, what in rows
    ]
    lines += ["", f"{corpus['text_bytes'] / 1e6:,.3f} MB of text in {len(report['shards'])} shards.", ""]
    for title in ("languages", "licences"):
        lines += [f"## Documents by {title[:-1]}", "", f"| {title[:-1]} | documents |", "| --- | --- |"]
        lines += [f"| {cell(name)} | {count:,} |" for name, count in corpus[title].items()] + [""]
    lines += ["## Redacted", "", "| kind | replaced | files |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {item['replacements']:,} | {item['files']:,} |" for kind, item in report["redacted"].items()]
    for title, items in (("Dropped", report["dropped"]), ("Redacted", report["redacted"])):
        for name, item in items.items():
            lines += ["", f"## {title}: {name} (samples)", "", "| path | reason |", "| --- | --- |"]
            lines += [f"| {cell(sample['path'])} | {cell(sample['reason'])} |" for sample in item["samples"]]
    return "\n".join(lines) + "\n"
