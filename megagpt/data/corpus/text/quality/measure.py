"""Measure how well scores separate good from bad documents, on held-out documents."""

from typing import Any

import numpy as np

from megagpt.data.corpus.text.quality.hashing import import_scientific
from megagpt.data.corpus.text.quality.keep import ALPHA, pareto_probability, top_threshold

BINS = 20
"""Number of bins of the histograms, from 0 to 1; the reliability has half as many."""

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Top shares whose thresholds are reported."""

CLASSES = ("bad", "good")


def measure(scores: np.ndarray, good: np.ndarray) -> dict[str, Any]:
    """Metrics, as values for JSON.

    scores: float64 [documents]
    good: bool [documents], with both values

    roc_auc: probability that a good document scores above a bad one
    average_precision: mean precision over the ranks of the good documents
    log_loss: in nats
    calibration_error: mean distance between score and share of good documents in bins of equal width, weighted by the
        number of documents
    kept: share of each class that a rule keeps
    """
    metrics = import_scientific("sklearn.metrics")
    by_class = {name: scores[good == bool(number)] for number, name in enumerate(CLASSES)}
    reliability = _reliability(scores, good)
    off = sum(part["documents"] * abs(part["mean_score"] - part["share_good"]) for part in reliability)
    return {
        "documents": {name: len(values) for name, values in by_class.items()},
        "roc_auc": float(metrics.roc_auc_score(good, scores)),
        "average_precision": float(metrics.average_precision_score(good, scores)),
        "log_loss": float(metrics.log_loss(good, scores, labels=[False, True])),
        "calibration_error": off / len(scores),
        "mean_score": {name: float(values.mean()) for name, values in by_class.items()},
        "reliability": reliability,
        "histogram": {name: np.histogram(values, BINS, (0, 1))[0].tolist() for name, values in by_class.items()},
        "kept": _kept(by_class),
    }


def _reliability(scores: np.ndarray, good: np.ndarray) -> list[dict[str, float]]:
    """Mean score and share of good documents in each bin that has documents."""
    bins = np.minimum((scores * (BINS // 2)).astype(int), BINS // 2 - 1)
    return [
        {
            "from": float(number / (BINS // 2)),
            "documents": int((bins == number).sum()),
            "mean_score": float(scores[bins == number].mean()),
            "share_good": float(good[bins == number].mean()),
        }
        for number in np.unique(bins)
    ]


def _kept(by_class: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Shares of each class that the rules keep. Top shares refer to the bad class, which represents a crawl."""
    rules = [{"rule": "pareto", "alpha": ALPHA}]
    rules += [{"rule": "top", "share": share, "threshold": top_threshold(by_class["bad"], share)} for share in SHARES]
    for rule in rules:
        for name, values in by_class.items():
            chances = pareto_probability(values, ALPHA) if rule["rule"] == "pareto" else values >= rule["threshold"]
            rule[name] = float(chances.mean())
    return rules
