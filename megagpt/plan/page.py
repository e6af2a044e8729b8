"""Writes the plan as one self-contained HTML page: tables, and charts of memory and of the pipeline's timeline."""

import io
from html import escape
from typing import Any

from rich.console import Console

from megagpt.errors import ConfigError
from megagpt.plan import tables
from megagpt.plan.devices import GIB
from megagpt.plan.estimate import Estimate
from megagpt.plan.schedule import Pass

MOST_PASSES = 4000
"""Largest number of passes in the chart; browsers become slow with more, and later passes look alike."""

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px; font: 15px/1.5 system-ui, sans-serif; color: #1d1f24; }
h1 { font-size: 26px; } h2 { font-size: 18px; margin-top: 36px; }
pre { overflow-x: auto; font: 13px/1.25 ui-monospace, Menlo, Consolas, monospace; }
.refused { border-left: 4px solid #c2334c; padding: 4px 16px; }
"""


def build_page(plan: Estimate, refusal: str = "") -> str:
    """The page's HTML. refusal: the message for a plan that does not fit. Raises ConfigError without plotly."""
    title = f"{plan.job.config.model.name} on {plan.job.gpus} x {plan.device.name}"
    texts = "".join(_text(table) for table in (tables.summary(plan), tables.time(plan), tables.assumed(plan)))
    refused = f'<pre class="refused">{escape(refusal)}</pre>' if refusal else ""
    figures = [_memory(plan), _timeline(plan)]
    drawn = "".join(
        f"<h2>{escape(heading)}</h2>{figure.to_html(full_html=False, include_plotlyjs=number == 0)}"
        for number, (heading, figure) in enumerate(figures)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} - megagpt plan</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{refused}{texts}{drawn}
</body>
</html>
"""


def _text(table: Any) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return f"<pre>{escape(console.file.getvalue())}</pre>"


def _graphs() -> Any:
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ConfigError("--html needs plotly, which is not installed: pip install plotly") from error
    return graph_objects


def _memory(plan: Estimate) -> tuple[str, Any]:
    graphs = _graphs()
    stages = list(range(len(plan.memory)))
    bars = [
        graphs.Bar(name=part, x=stages, y=[getattr(held, part) / GIB for held in plan.memory])
        for part in tables.parts(plan)
    ]
    figure = graphs.Figure(bars)
    usable = plan.device.usable_bytes / GIB
    figure.add_hline(usable, line_dash="dash", annotation_text=f"usable: {usable:.1f} GiB")
    figure.update_layout(barmode="stack", xaxis_title="pipeline stage", yaxis_title="GiB a rank", height=420)
    figure.update_xaxes(dtick=max(1, len(stages) // 16))
    return "Memory", figure


def _timeline(plan: Estimate) -> tuple[str, Any]:
    graphs = _graphs()
    passes = sorted(plan.timeline.passes, key=lambda one: one.start)
    drawn = passes[:MOST_PASSES]
    figure = graphs.Figure(
        [
            _bars(graphs, "forward", [one for one in drawn if one.forward], "#2b67d1"),
            _bars(graphs, "backward", [one for one in drawn if not one.forward], "#d1661c"),
        ]
    )
    height = 160 + 24 * plan.job.pipeline_size
    figure.update_layout(barmode="overlay", xaxis_title="seconds", yaxis_title="stage", height=height, bargap=0.1)
    figure.update_yaxes(autorange="reversed", dtick=1)
    part = f", the first {len(drawn):,} of {len(passes):,} passes" if len(drawn) < len(passes) else ""
    return f"Pipeline: bubble {plan.timeline.bubble:.1%}{part}", figure


def _bars(graphs: Any, name: str, passes: list[Pass], color: str) -> Any:
    """Bars of one kind of pass; chunks deeper in the model are paler."""
    deepest = max((one.chunk for one in passes), default=0) + 1
    return graphs.Bar(
        name=name,
        orientation="h",
        y=[one.stage for one in passes],
        base=[one.start for one in passes],
        x=[one.end - one.start for one in passes],
        text=[str(one.micro_batch) for one in passes],
        hovertext=[f"{name} of micro-batch {one.micro_batch}, chunk {one.chunk}" for one in passes],
        marker={"color": color, "opacity": [1 - 0.6 * one.chunk / deepest for one in passes], "line": {"width": 0.5}},
    )
