"""Builds self-contained HTML pages with plots, which make no network requests."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from megagpt.errors import ConfigError

Rows = list[tuple[str, list[str]]]
"""A table: (label, cells) of each row, as plain text."""


def build_page(title: str, body: str, data: Any, *, style: Sequence[str], script: str) -> str:
    """The page's HTML.

    title: plain text. body: HTML. data: JSON value for the script, in the element with id "data". style and script:
    names of files in this folder; plotly is loaded before the script. Raises ConfigError without plotly.
    """
    folder = resources.files(__package__)
    scripts = [_plotly(), folder.joinpath(script).read_text(encoding="utf-8")]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">
<title>{escape(title)} - megagpt</title>
<link rel="icon" href="data:,">
<style>{"".join(folder.joinpath(name).read_text(encoding="utf-8") for name in style)}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="data">{_script_safe_json(data)}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def tiles(*tiles: tuple[str, str | None, str]) -> str:
    """HTML of highlighted figures: (label, value, note). Figures without a value are left out."""
    items = (
        f"<li><span>{escape(label)}</span><strong>{escape(value)}</strong><small>{escape(note)}</small></li>"
        for label, value, note in tiles
        if value
    )
    return f'<ul class="tiles">{"".join(items)}</ul>'


def section(title: str, body: str) -> str:
    """HTML of a section with a title and the HTML `body`; "" without a body."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def table(rows: Rows, heads: list[str], style: str = "numbers") -> str:
    """HTML of a table. heads: names of the columns as HTML, or []."""
    if not rows:
        return ""
    cells = "".join(f'<th scope="col">{name}</th>' for name in heads)
    head = f"<thead><tr><th></th>{cells}</tr></thead>" if heads else ""
    lines = (
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for label, cells in rows
    )
    return f'<div class="scroll"><table class="{style}">{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError("the page needs plotly: pip install plotly") from None
    return get_plotlyjs()


def _policy(scripts: list[str]) -> str:
    """A Content-Security-Policy that allows only the page's scripts and no network requests."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"


def _script_safe_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
