"""Builds HTML pages with line and bar charts, drawn by plotly."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from megagpt.evaluate.page import build_page


@dataclass(frozen=True)
class Series:
    """One line or set of bars of a chart."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    style: Literal["line", "reference", "published", "bar"] = "line"
    """reference: a dashed grey line, such as a diagonal. published: a thin grey line with other authors' figures."""
    text: Sequence[str] = ()
    """Text on each bar, or the tooltip of each point."""
    low: Sequence[float | None] = ()
    """Lower ends of the points' intervals; `high` has the upper ends."""
    high: Sequence[float | None] = ()
    label: str = ""
    """Text after the last point."""


@dataclass(frozen=True)
class Chart:
    """One figure."""

    title: str
    series: Sequence[Series]
    note: str = ""
    """Text next to the title."""
    x: str = ""
    """Title of the horizontal axis; `y` is the vertical axis's."""
    y: str = ""
    axes: dict[str, Any] = field(default_factory=dict)
    """plotly's settings: {"xaxis": {"range": [0, 1]}}."""
    wide: bool = False
    """Whether the chart has the whole width of the page."""
    fold: str = ""
    """Name of the collapsed group that the chart belongs to; "" for none. Collapsed groups come last."""


def build_charts(
    title: str, facts: Sequence[str], above: str, charts: Sequence[Chart], below: str, style: Sequence[str] = ()
) -> str:
    """The page's HTML. title and facts: plain text; above and below: HTML around the charts; style: more files."""
    head = (
        f'<header><span class="brand">megagpt</span><h1>{escape(title)}</h1><p>{escape(" · ".join(facts))}</p></header>'
    )
    return charts_page(title, f"{head}{above}{figures(charts)}{below}", charts, style)


def figures(charts: Sequence[Chart], first: int = 0) -> str:
    """HTML placeholders of the charts. first: number of charts of the page before them."""
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
    """The page's HTML. body: HTML with the placeholders of all `charts`, in order."""
    data = [
        {"x": chart.x, "y": chart.y, "axes": chart.axes, "series": [vars(one) for one in chart.series]}
        for chart in charts
    ]
    return build_page(title, body, data, style=["report.css", "charts.css", *style], script="charts.js")
