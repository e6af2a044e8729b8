"""A page of figures: lines and bars that plotly draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from megagpt.evaluate.page import build_page


@dataclass(frozen=True)
class Series:
    """Points of a chart."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    style: Literal["line", "reference", "published", "bar"] = "line"
    """A reference is a dashed line in grey, such as a diagonal; published are thin lines in grey, others' figures."""
    text: Sequence[str] = ()
    """What is written at the bars, or shown beside the points when they are pointed at."""
    low: Sequence[float | None] = ()
    """Lower ends of the points' intervals; likewise high."""
    high: Sequence[float | None] = ()
    label: str = ""
    """What is written after the last point."""


@dataclass(frozen=True)
class Chart:
    """One figure."""

    title: str
    series: Sequence[Series]
    note: str = ""
    """Beside the title."""
    x: str = ""
    """Title of the axis; likewise y."""
    y: str = ""
    axes: dict[str, Any] = field(default_factory=dict)
    """plotly's settings: {"xaxis": {"range": [0, 1]}}."""
    wide: bool = False
    """Over the whole width of the page."""
    fold: str = ""
    """What it is folded away with; such charts come last, those of one name in a row."""


def build_charts(
    title: str, facts: Sequence[str], above: str, charts: Sequence[Chart], below: str, style: Sequence[str] = ()
) -> str:
    """The page's HTML. title and facts: plain text; above and below: HTML around the charts; style: more files."""
    head = (
        f'<header><span class="brand">megagpt</span><h1>{escape(title)}</h1><p>{escape(" · ".join(facts))}</p></header>'
    )
    return charts_page(title, f"{head}{above}{figures(charts)}{below}", charts, style)


def figures(charts: Sequence[Chart], first: int = 0) -> str:
    """HTML of the charts' places. first: how many charts of the page come before them."""
    places: dict[str, list[str]] = {"": []}
    for number, chart in enumerate(charts, first):
        places.setdefault(chart.fold, []).append(
            f"<figure{' class=wide' * chart.wide}><figcaption>{escape(chart.title)}<small>{escape(chart.note)}</small>"
            f'</figcaption><div class="plot" id="plot{number}"></div></figure>'
        )
    grids = {name: f'<div class="plots">{"".join(of)}</div>' for name, of in places.items()}
    return grids.pop("") + "".join(
        f"<details><summary>{escape(name)}: {len(places[name])} charts</summary>{grid}</details>"
        for name, grid in grids.items()
    )


def charts_page(title: str, body: str, charts: Sequence[Chart], style: Sequence[str] = ()) -> str:
    """The page's HTML, where `body` has the places of all `charts`, in their order."""
    data = [
        {"x": chart.x, "y": chart.y, "axes": chart.axes, "series": [vars(one) for one in chart.series]}
        for chart in charts
    ]
    return build_page(title, body, data, style=["report.css", "charts.css", *style], script="charts.js")
