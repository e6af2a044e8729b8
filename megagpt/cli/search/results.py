"""Show documents of an index."""

import json
from typing import TYPE_CHECKING, Any

import click

from megagpt.data.texts import shortened

if TYPE_CHECKING:
    import numpy as np

    from megagpt.evaluate.index import Index


def results_of(index: "Index", scores: "np.ndarray", rows: "np.ndarray") -> list[dict[str, Any]]:
    """Documents with their numbers in the index and their scores, best first, as JSON objects."""
    found = zip(scores.tolist(), rows.tolist(), strict=True)
    return [{"number": row, "score": round(score, 6)} | index.texts[row] for score, row in found]


def json_line(record: dict[str, Any]) -> str:
    """A line of JSON."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def shown_result(result: dict[str, Any]) -> str:
    """A line for a found document: its score, its number, and the beginning of its text."""
    return (
        f"{result['score']:8.4f}  {click.style('#' + str(result['number']), fg='cyan')}  {shortened(result['text'])}\n"
    )


def bold(text: str) -> str:
    """A heading. Its style is left out if the output is not a terminal."""
    return click.style(shortened(text), bold=True)
