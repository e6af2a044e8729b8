"""Builds the page of a quality classifier of documents: its accuracy, and the documents that rules would keep."""

from typing import Any

import numpy as np

from megagpt.evaluate.charts import Chart, Series, build_charts
from megagpt.evaluate.page import section, table, tiles


def build_quality_page(about: dict[str, Any], name: str) -> str:
    """The page's HTML. about: the content of quality.json from `data.corpus.text.quality.train`."""
    figures = about["held_out"]
    documents, trained = figures["documents"], about["trained_on"]
    method = {"hashing": "hashed words and logistic regression (GPT-3)", "fasttext": "fastText (DCLM)"}
    facts = [method[about["method"]], f"trained on {trained['good']:,} good and {trained['bad']:,} bad documents"]
    above = tiles(
        ("ROC AUC", f"{figures['roc_auc']:.4f}", "chance 0.5, best 1"),
        (
            "Average precision",
            f"{figures['average_precision']:.4f}",
            f"chance {documents['good'] / sum(documents.values()):.2f}, best 1",
        ),
        ("Log-loss", f"{figures['log_loss']:.4f}", "nats a document"),
        ("Calibration error", f"{figures['calibration_error']:.4f}", "mean distance, 0 to 1"),
        ("Held out", f"{sum(documents.values()):,}", f"{documents['good']:,} good, {documents['bad']:,} bad"),
    )
    note = (
        "All figures are of documents that the classifier has not seen. The top shares are of the bad documents, which "
        "stand for a crawl; score a sample of your own corpus with megagpt data quality score for its thresholds."
    )
    below = section("What rules would keep", table(_rules(figures), ["of the good", "of the bad"]) + _note(note))
    below += section("Settings", table(_settings(about), [], "code"))
    return build_charts(f"Quality classifier {name}", facts, above, [_histogram(figures), _reliability(figures)], below)


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def _histogram(figures: dict[str, Any]) -> Chart:
    series = []
    for name in ("good", "bad"):
        counts = np.array(figures["histogram"][name])
        middles = (np.arange(len(counts)) + 0.5) / len(counts)
        series.append(Series(name, middles.round(4).tolist(), (counts / counts.sum()).round(6).tolist(), "bar"))
    axes = {"xaxis": {"range": [0, 1]}, "yaxis": {"tickformat": ".0%", "hoverformat": ".2%"}}
    return Chart("Scores", series, "share of each class", "score", axes=axes)


def _reliability(figures: dict[str, Any]) -> Chart:
    bins = figures["reliability"]
    found = Series(
        "classifier",
        [part["mean_score"] for part in bins],
        [part["share_good"] for part in bins],
        text=[f"{part['documents']:,} documents" for part in bins],
    )
    diagonal = Series("calibrated", [0, 1], [0, 1], "reference")
    axes = {name: {"range": [0, 1.02]} for name in ("xaxis", "yaxis")}
    return Chart("Reliability", [found, diagonal], "ten bins of equal width", "mean score", "share of good ones", axes)


def _rules(figures: dict[str, Any]) -> list[tuple[str, list[str]]]:
    rows = []
    for rule in figures["kept"]:
        if rule["rule"] == "pareto":
            label = f"Pareto rule, alpha {rule['alpha']:g}"
        else:
            label = f"top {rule['share']:.0%} of the bad, score ≥ {rule['threshold']:.4g}"
        rows.append((label, [f"{rule['good']:.2%}", f"{rule['bad']:.2%}"]))
    return rows


def _settings(about: dict[str, Any]) -> list[tuple[str, list[str]]]:
    values = about["settings"] | {"seed": about["seed"], "in both classes": about["trained_on"]["in_both"]}
    values |= {"malformed records": about["rejected"]}
    return [(name, [str(value)]) for name, value in values.items()]
