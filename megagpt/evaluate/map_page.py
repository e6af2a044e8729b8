"""Builds a self-contained HTML page with a two-dimensional map of an index, on which similar documents are close."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from megagpt.data.texts import shortened
from megagpt.errors import ConfigError
from megagpt.evaluate.clusters import Cluster, describe, find_clusters, import_sklearn
from megagpt.evaluate.index import Index, nearest
from megagpt.evaluate.page import build_page
from megagpt.log import progress

MAX_POINTS = 4000
"""Default number of documents on the map; t-SNE and browsers are slow with more."""

MOST_GROUPS = 12
"""Largest number of groups with a colour of their own; further values of a key are "other"."""

PRINCIPAL = 50
"""Number of principal components that are the input of t-SNE, as its authors recommend."""

PERPLEXITY = 30
"""t-SNE's perplexity: approximately the number of neighbours that it keeps near a point."""

NEIGHBOURS = 8
"""Number of listed documents that are most similar to a selected one."""

SHOWN_CHARACTERS = 800
"""Largest number of characters of a text on the page."""


def build_map(
    index: Index, *, groups: int = 10, key: str | None = None, points: int = MAX_POINTS, seed: int = 0
) -> str:
    """The page's HTML. Every text is escaped.

    groups: number of clusters, which determine the colours. key: colour by the values of this key of the documents'
    records instead. points: number of documents to draw, a random sample if there are more. Raises ConfigError when no
    document has the key, and without scikit-learn or plotly.
    """
    rows = choose(len(index.vectors), points, seed)
    vectors = np.array(index.vectors[rows])
    records = [index.texts[int(row)] for row in rows]
    texts = [record["text"] for record in records]
    if key is None:
        found = find_clusters(vectors, texts, min(groups, len(rows)), seed)
        names = [", ".join(one.words[:3]) or f"cluster {number}" for number, one in enumerate(found, 1)]
    else:
        names, labels = values_of(records, key)
        found = describe(vectors, texts, labels)
    with progress(1, "map", "placing points") as bar:
        places = place(vectors, seed)
        bar.update()
    cosines, near = nearest(vectors, NEIGHBOURS)
    group = np.empty(len(rows), int)
    for number, one in enumerate(found):
        group[one.rows] = number
    data = {
        "x": places[:, 0].round(3).tolist(),
        "y": places[:, 1].round(3).tolist(),
        "group": group.tolist(),
        "number": rows.tolist(),
        "text": [text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..." for text in texts],
        "near": near.tolist(),
        "cosine": cosines.round(3).tolist(),
        "names": names,
    }
    body = "\n".join([_header(index, len(rows)), _controls(names, found), _PLOT, _cards(names, found, data["text"])])
    return build_page(f"Map of {index.folder.name}", body, data, style=["report.css", "map.css"], script="map.js")


def choose(count: int, points: int, seed: int) -> np.ndarray:
    """Rows to draw, ascending: all, or `points` of them at random."""
    if count <= points:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, points, replace=False))


def place(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Positions in the plane, float64 [n, 2]: t-SNE (van der Maaten and Hinton, 2008) of the principal components.

    vectors: float32 [n, D]. With fewer than 5 points, too few for t-SNE, the positions are the first two components.
    """
    count, components = len(vectors), min(PRINCIPAL, *vectors.shape)
    if np.ptp(vectors, axis=0).max() < 1e-6:  # all vectors are equal
        return np.zeros((count, 2))
    reduced = import_sklearn("decomposition").PCA(components, random_state=seed).fit_transform(vectors.astype(float))
    start = np.pad(reduced, ((0, 0), (0, 2)))[:, :2]
    if count < 5:
        return start
    start = (1e-4 / start[:, 0].std() * start).astype(np.float32)
    settings = {"perplexity": min(PERPLEXITY, (count - 1) / 3), "init": start, "random_state": seed}
    return import_sklearn("manifold").TSNE(2, **settings).fit_transform(reduced.astype(np.float32)).astype(float)


def values_of(records: Sequence[dict[str, Any]], key: str) -> tuple[list[str], np.ndarray]:
    """Names of the values of a key, most frequent first, and the index of each record's name, int [n].

    Raises ConfigError that lists the existing keys when no record has the key.
    """
    values = [str(one["record"][key]) if key in one["record"] else "(none)" for one in records]
    if not any(key in one["record"] for one in records):
        known = sorted({name for one in records for name in one["record"]})
        raise ConfigError(f"no document has a key {key!r} to colour by; they have {', '.join(known) or 'none'}")
    counts = Counter(values).most_common()
    names = [name for name, _ in counts[: MOST_GROUPS if len(counts) <= MOST_GROUPS else MOST_GROUPS - 1]]
    if len(names) < len(counts):
        names.append(f"other ({len(counts) - len(names)} values)")
    number = {name: position for position, name in enumerate(names)}
    return names, np.array([number.get(value, len(names) - 1) for value in values])


def _header(index: Index, drawn: int) -> str:
    total, about = len(index.vectors), index.about
    facts = [
        f"{total:,} documents" if drawn == total else f"{drawn:,} of {total:,} documents, chosen at random",
        f"{about['dimensions']} dimensions",
        f"embedded by {about['job']['checkpoint']['folder']}",
    ]
    title = escape(f"Map of {index.folder.name}")
    return f'<header><span class="brand">megagpt</span><h1>{title}</h1><p>{escape(" · ".join(facts))}</p></header>'


def _controls(names: Sequence[str], found: Sequence[Cluster]) -> str:
    chips = "".join(
        f'<button class="chip" data-group="{number}" aria-pressed="true"><i class="dot"></i>{escape(name)}'
        f"<small>{len(one.rows):,}</small></button>"
        for number, (name, one) in enumerate(zip(names, found, strict=True))
    )
    return f"""<nav class="controls" aria-label="Map">
<div class="find"><input type="search" id="search" placeholder="Find in the texts" aria-label="Find in the texts"
 autocomplete="off" spellcheck="false"><output id="matches"></output></div>
<div class="chips">{chips}</div></nav>"""


_PLOT = """<div class="map">
<figure><div id="plot"></div><div id="tip" hidden></div></figure>
<aside id="panel" aria-live="polite"></aside></div>
<p class="note">Every dot is a document. Scroll to zoom, drag to move, double-click for the whole map, click a dot for
its text and the most similar documents. Near neighbours on the map are similar documents; the distances between groups
and the sizes of groups mean little (t-SNE). The lists of similar documents are computed from the whole vectors.</p>
"""


def _cards(names: Sequence[str], found: Sequence[Cluster], texts: Sequence[str]) -> str:
    cards = []
    for number, (name, one) in enumerate(zip(names, found, strict=True)):
        central = "".join(
            f'<li><button data-point="{row}">{escape(shortened(texts[row]))}</button></li>' for row in one.central
        )
        words = ", ".join(one.words)
        heading, below = (words, "") if words.startswith(name) else (name, f"<p>{escape(words)}</p>")
        facts = f"{len(one.rows):,} documents · mean cosine with their centre {one.cohesion:.2f}"
        cards.append(
            f'<article data-group="{number}"><h3><i class="dot"></i>{escape(heading)}</h3>{below}<small>{facts}</small>'
            f"<ol>{central}</ol></article>"
        )
    return f'<section><h2>Groups and their most central texts</h2><div class="samples">{"".join(cards)}</div></section>'
