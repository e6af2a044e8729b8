"""Builds the page of a mixture of corpora, with each corpus's share and number of epochs."""

from collections.abc import Sequence
from html import escape

from megagpt.data.corpus.text.mixture import LARGEST_EPOCHS, RECIPES, Part
from megagpt.evaluate.charts import Chart, Series, build_charts
from megagpt.evaluate.page import section, table, tiles


def build_mixture_page(
    parts: Sequence[Part], train_tokens: float, notes: Sequence[str] = (), recipe: str | None = None
) -> str:
    """The page's HTML. notes: texts about the mixture. recipe: name of a recipe whose published epochs are shown."""
    total = sum(part.corpus.tokens for part in parts)
    most = max(parts, key=lambda part: part.epochs)
    above = tiles(
        ("Corpora", str(len(parts)), ""),
        ("Tokens in them", _tokens(total), ""),
        ("Tokens of the run", _tokens(train_tokens), f"{train_tokens / total:.2f} times the corpora"),
        ("Most epochs", f"{most.epochs:.2f}", most.corpus.name),
    )
    names = [part.corpus.name for part in parts]
    sizes, shares = [part.corpus.tokens / total for part in parts], [part.share for part in parts]
    bars = [
        Series(name, names, values, "bar", [f"{value:.1%}" for value in values])
        for name, values in (("of the tokens", sizes), ("of the training samples", shares))
    ]
    epochs = [part.epochs for part in parts]
    charts = [
        Chart("Shares", bars, axes={"yaxis": {"tickformat": ".0%", "hoverformat": ".2%"}}),
        Chart(
            "Epochs",
            [
                Series("epochs", names, epochs, "bar", [f"{value:.2f}" for value in epochs]),
                Series(
                    "repetition is nearly as good as new data below", names, [LARGEST_EPOCHS] * len(names), "reference"
                ),
            ],
            "arXiv 2305.16264",
        ),
    ]
    heads = [
        "tokens",
        "weight",
        "share of samples",
        "tokens seen",
        "epochs",
        *(["published epochs, of 300 B"] if recipe else []),
    ]
    rows = []
    for part in parts:
        cells = [_tokens(part.corpus.tokens), f"{part.weight:.4g}", f"{part.share:.1%}"]
        cells += [_tokens(part.share * train_tokens), f"{part.epochs:.2f}"]
        cells += [f"{RECIPES[recipe][part.corpus.name].epochs:g}"] if recipe else []
        rows.append((part.corpus.name, cells))
    below = section("Mixture", table(rows, heads) + "".join(f'<p class="note">{escape(note)}</p>' for note in notes))
    return build_charts("Mixture of corpora", [f"for a run of {_tokens(train_tokens)} tokens"], above, charts, below)


def _tokens(value: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"
