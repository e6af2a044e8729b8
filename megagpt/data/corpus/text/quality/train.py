"""Train a classifier on files of good and of bad documents, and measure it on held-out documents."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.quality.fast_text import FastTextLearner
from megagpt.data.corpus.text.quality.hashing import L2, HashingLearner
from megagpt.data.corpus.text.quality.keep import draw
from megagpt.data.corpus.text.quality.measure import CLASSES, measure
from megagpt.data.corpus.text.quality.model import METHODS, Model, load_model, save_model
from megagpt.data.corpus.text.quality.texts import Texts
from megagpt.data.files import write_atomic
from megagpt.errors import ConfigError, DataError

log = logging.getLogger(__name__)

POOR = 0.6
"""ROC AUC below which a warning is logged; chance is 0.5."""


@dataclass(frozen=True)
class Training:
    """Settings of the training."""

    method: str = "hashing"
    """One of METHODS."""
    held_out: float = 0.1
    """Share of the documents, chosen by a hash of their text, on which the figures are measured."""
    documents: int | None = None
    """Largest number of documents per class. The documents with the smallest hashes are taken: a random choice."""
    l2: float = L2
    """For hashing: see `HashingLearner`."""
    balanced: bool = False
    """For hashing: give both classes the same total weight, whatever their numbers of documents."""
    fasttext: dict[str, Any] = field(default_factory=dict)
    """Settings of fastText that differ from DCLM's."""
    seed: int = 0


def train(good: Texts, bad: Texts, output: str | Path, settings: Training = Training()) -> dict[str, Any]:
    """Train a classifier and write it to the folder `output`, with quality.json. Returns the content of quality.json.

    The same documents, in any order and any files, give the same bytes. Raises ConfigError for settings out of range,
    DataError for inputs that cannot be used or leave a class without documents.
    """
    _check(settings)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    classes = (bad, good)
    cuts = [_cut(texts, settings) for texts in classes]
    with tempfile.TemporaryDirectory(prefix=".train.", dir=output) as folder:
        learner = _learner(settings, Path(folder))
        used = [_learn(learner, texts, number, cuts[number], settings) for number, texts in enumerate(classes)]
        both = len(np.intersect1d(used[0], used[1]))
        if both:
            log.warning("%d documents are in both classes, good and bad: no classifier can tell them apart", both)
        save_model(learner.fit(), output)
    about = {
        "method": settings.method,
        "settings": learner.settings() | {"held_out": settings.held_out, "documents": settings.documents},
        "seed": settings.seed,
        "trained_on": {name: len(orders) for name, orders in zip(CLASSES, used, strict=True)} | {"in_both": both},
        "rejected": sum(texts.rejected for texts in classes),
        "held_out": _measure(load_model(output), classes, cuts, settings),
    }
    if about["held_out"]["roc_auc"] < POOR:
        log.warning(
            "ROC AUC %.3f: the classifier hardly tells the classes apart; give more documents or, with fastText, more "
            "epochs (--epochs)",
            about["held_out"]["roc_auc"],
        )
    write_atomic(output / "quality.json", json.dumps(about, indent=2, allow_nan=False).encode() + b"\n")
    return about


def _check(settings: Training) -> None:
    if settings.method not in METHODS:
        raise ConfigError(f"--method {settings.method}: the methods are {', '.join(METHODS)}")
    if not 0 < settings.held_out < 1:
        raise ConfigError(f"--held-out {settings.held_out:g}: give a share above 0 and below 1")
    if settings.method != "hashing" and settings.balanced:
        raise ConfigError(f"--balanced is for the method hashing, not {settings.method}")
    if settings.l2 <= 0:
        raise ConfigError(f"--l2 {settings.l2:g}: it must be above 0, since words of one class have no finite weight")
    if settings.documents is not None and settings.documents < 1:
        raise ConfigError(f"--documents {settings.documents}: give at least 1")


def _learner(settings: Training, folder: Path) -> HashingLearner | FastTextLearner:
    if settings.method == "fasttext":
        return FastTextLearner(folder, settings.seed, **settings.fasttext)
    return HashingLearner(settings.l2, settings.balanced)


def _cut(texts: Texts, settings: Training) -> float:
    """The largest order of a document that is used."""
    if settings.documents is None:
        return 1.0
    orders = np.sort([_order(text, settings) for text in texts])
    return float(orders[settings.documents - 1]) if len(orders) > settings.documents else 1.0


def _order(text: str, settings: Training) -> float:
    return draw(text, "order", settings.seed)


def _part(texts: Texts, cut: float, held_out: bool, settings: Training) -> Iterator[tuple[float, str]]:
    """(order, text) of the used documents: of the held-out ones, or of the others."""
    for text in texts:
        order = _order(text, settings)
        if order <= cut and (draw(text, "held out", settings.seed) < settings.held_out) == held_out:
            yield order, text


def _learn(
    learner: HashingLearner | FastTextLearner, texts: Texts, number: int, cut: float, settings: Training
) -> np.ndarray:
    """Add the documents of a class to the learner. Returns their orders, float64 [documents]."""
    orders = []
    for order, text in _part(texts, cut, False, settings):
        learner.add(Analysis(text), bool(number), order)
        orders.append(order)
    if not orders:
        raise DataError(f"--{CLASSES[number]}: no document is left to learn from; give more")
    return np.array(orders)


def _measure(model: Model, classes: Sequence[Texts], cuts: Sequence[float], settings: Training) -> dict[str, Any]:
    scores, good = [], []
    for number, texts in enumerate(classes):
        found = [model.score(Analysis(text)) for _, text in _part(texts, cuts[number], True, settings)]
        if not found:
            raise DataError(f"--{CLASSES[number]}: no document is held out; give more, or a larger --held-out")
        scores += found
        good += [bool(number)] * len(found)
    return measure(np.array(scores), np.array(good))
