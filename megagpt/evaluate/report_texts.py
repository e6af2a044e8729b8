"""Texts in a report: samples before and after each run, answers to instructions, and links to further pages."""

from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from megagpt.evaluate.page import section, table
from megagpt.evaluate.runs import Run, number

SHOWN_ANSWERS = 10
"""Answers to held-out instructions on the page, at most."""


def dot(run: int) -> str:
    """HTML of the dot in the colour of run number `run`."""
    return f'<i class="dot" data-color="{run}"></i>'


def links_section(links: Sequence[tuple[str, str]]) -> str:
    """HTML of links, each a text and an address; nothing without any."""
    items = (f'<li><a href="{escape(address)}">{escape(text)}</a></li>' for text, address in links)
    return section("Further pages", f"<ul>{''.join(items)}</ul>") if links else ""


def samples_section(runs: list[Run]) -> str:
    """HTML of the generated texts, the runs' responses to one prompt side by side.

    A run that also wrote samples before its first step has both in one box.
    """
    articles = []
    for samples in zip_longest(*(run.samples for run in runs)):
        for index, sample in enumerate(samples):
            if sample is None:
                continue
            before = [one for one in runs[index].samples_before if one.get("prompt") == sample.get("prompt")][:1]
            of_run = f"{dot(index)}{escape(runs[index].name)} · " if len(runs) > 1 else ""
            texts = [f"<small>{of_run}{_step(one)}</small>{_text(one)}" for one in (*before, sample)]
            articles.append(f"<article>{''.join(texts)}</article>")
    return section("Samples", f'<div class="samples">{"".join(articles)}</div>') if articles else ""


def _step(sample: dict[str, Any]) -> str:
    step = number(sample.get("step"))
    return "before" if step == 0 else "" if step is None else f"step {step:,.0f}"


def _text(sample: dict[str, Any]) -> str:
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    return f"<pre><b>{escape(prompt)}</b>{escape(text.removeprefix(prompt))}</pre>"


def instructions_section(runs: list[Run]) -> str:
    """HTML of the shares of held-out instructions that runs follow, by kind, and some answers of the last such run.

    Nothing where no run has been asked (`megagpt evaluate task=instructions`, into the folder instructions of the run).
    """
    asked = [(index, run) for index, run in enumerate(runs) if run.instructions]
    if not asked:
        return ""
    kinds = list(dict.fromkeys(kind for _, run in asked for kind in run.instructions))
    rows = [(kind, [_share(run.instructions.get(kind)) for _, run in asked]) for kind in kinds]
    shares = table(rows, [f"{dot(index)}{escape(run.name)}" for index, run in asked])
    answers = [
        (str(answer.get("prompt", "")), [str(answer.get("answer", "")), "right" if answer.get("right") else "wrong"])
        for answer in asked[-1][1].answers[:SHOWN_ANSWERS]
    ]
    return section("Held-out instructions followed", shares + table(answers, ["answer", ""], "code"))


def _share(metrics: Any) -> str:
    share = number(metrics.get("right")) if isinstance(metrics, dict) else None
    return "" if share is None else f"{share:.1%}"
