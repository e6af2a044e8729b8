"""The report of a pair file: counts, lengths and examples, as JSON and in words."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from megagpt.data.pair_sources.found import EXAMPLES, FoundPair, Tally

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def report(pairs: Sequence[FoundPair], tally: Tally, job: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The report as values for JSON.

    job: arguments of the command
    seconds: duration of the command
    """
    groups = Counter(pair.split_key for pair in pairs)
    texts = {
        "query": [pair.query for pair in pairs],
        "positive": [pair.positive for pair in pairs],
        "negative": [text for pair in pairs for text in pair.negatives],
    }
    step = max(1, len(pairs) // EXAMPLES)
    return {
        "job": job,
        "read": dict(tally.read),
        "kept": {
            "pairs": len(pairs),
            "pairs with negatives": sum(bool(pair.negatives) for pair in pairs),
            "pairs with text_ids": sum(bool(pair.text_ids) for pair in pairs),
            "documents": len({pair.document for pair in pairs}),
            "split keys": len(groups),
            "pairs of the largest split key": max(groups.values(), default=0),
        },
        "dropped": dict(tally.dropped.most_common()),
        "where": tally.examples,
        "characters": {side: _percentiles(list(map(len, found))) for side, found in texts.items() if found},
        "examples": [pair.record() for pair in pairs[::step][:EXAMPLES]],
        "seconds": round(seconds, 2),
    }


def _percentiles(lengths: list[int]) -> dict[str, int]:
    values = np.percentile(lengths, PERCENTILES, method="nearest")
    return {f"p{share}": int(value) for share, value in zip(PERCENTILES, values, strict=True)}


def as_json(account: dict[str, Any]) -> bytes:
    """The report as the content of its file."""
    return (json.dumps(account, ensure_ascii=False, indent=1) + "\n").encode()


def in_words(account: dict[str, Any]) -> str:
    """The counts for a terminal."""
    lines = [f"read: {_listed(account['read'])}", f"kept: {_listed(account['kept'])}"]
    lines += ["dropped:", *(f"  {count:>9,}  {reason}" for reason, count in account["dropped"].items())]
    for side, values in account["characters"].items():
        spread = ", ".join(f"{name} {value}" for name, value in values.items())
        lines.append(f"characters of a {side}: {spread}")
    return "\n".join(line for line in lines if line != "dropped:" or account["dropped"])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def preview(pair: FoundPair, number: int, width: int = 600) -> str:
    """A pair as text for people. Texts are cut at `width` characters."""
    parts = [f"--- {number}: {pair.document} (split key: {pair.split_key})"]
    sides = [("query", pair.query), ("positive", pair.positive), *(("negative", text) for text in pair.negatives)]
    for name, text in sides:
        shown = text if len(text) <= width else f"{text[:width]} ... ({len(text):,} characters)"
        parts.append(f"{name}:\n" + "\n".join(f"  {line}" for line in shown.split("\n")))
    return "\n".join(parts if pair.score is None else [*parts, f"score: {pair.score:g}"])
