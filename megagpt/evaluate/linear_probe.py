"""Linear probes: evaluates frozen embeddings by the accuracy of a logistic regression on them."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.conversations import records
from megagpt.data.unread import log_unread
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.output_folder import claim, embedding_request, write_result
from megagpt.evaluate.settings import ProbeEvaluation
from megagpt.evaluate.text_embedder import TextEmbedder, embed_saved

log = logging.getLogger(__name__)

STRENGTHS = tuple(4.0**power for power in range(-1, 6))
"""Candidate values of C, the inverse regularization strength. SentEval's range from 1/4 to 8; ours go further, because
our vectors have norm 1 and SentEval's are longer."""


@dataclass(frozen=True)
class LabelledText:
    """A text and its class."""

    text: str
    label: str


def evaluate_probe(settings: ProbeEvaluation, embedder: TextEmbedder) -> dict[str, Any]:
    """Embed, fit and test; returns the content of result.json.

    SentEval's protocol (arXiv 1803.05449): logistic regression on frozen vectors, with the C of STRENGTHS that has the
    best accuracy in a cross-validation on the training texts. Metrics: accuracy and macro-F1 (the mean F1 of the
    classes), and the same for a baseline that always answers the most frequent label.

    Raises DataError for broken files, ConfigError without scikit-learn or when the output folder holds a different
    evaluation.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError('task=probe needs scikit-learn: pip install "megagpt[embeddings]"') from None
    train, test = _train_and_test(settings)
    _check(train, test, settings)
    files = [settings.data] if settings.test is None else [settings.data, settings.test]
    chosen = {name: getattr(settings, name) for name in ("side", "folds", "seed")}
    if settings.test is None:
        chosen["test_share"] = settings.test_share
    request = embedding_request(settings, files, {"train": len(train), "test": len(test)}, **chosen)
    claim(settings.output, request)
    folder = settings.output / "embeddings"
    vectors = {
        name: embed_saved(embedder, [one.text for one in part], settings.side, settings.dimensions, folder, name)
        for name, part in (("train", train), ("test", test))
    }
    labels, right = [one.label for one in train], [one.label for one in test]
    answers, strength = fit_and_answer(vectors["train"], labels, vectors["test"], settings.folds, settings.seed)
    common = Counter(sorted(labels)).most_common(1)[0][0]
    metrics = {"model": _metrics(right, answers), "majority": _metrics(right, [common] * len(right))}
    more = {"labels": dict(sorted(Counter(labels).items())), "strength": strength, "metrics": metrics}
    return write_result(settings.output, request, more)


def fit_and_answer(
    train: np.ndarray, labels: list[str], test: np.ndarray, folds: int, seed: int
) -> tuple[list[str], float]:
    """Predicted labels of `test` [m, H] by a probe fitted to `train` [n, H], and the chosen C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": STRENGTHS}, scoring="accuracy", cv=parts)
    log.info("fitting %d probes on %d texts", len(STRENGTHS) * folds + 1, len(train))
    search.fit(train, labels)
    return list(search.predict(test)), float(search.best_params_["C"])


def read_labelled(path: Path) -> list[LabelledText]:
    """The records of a .jsonl file, {"text", "label"}; a label is a text or an integer. Raises DataError."""
    found, unread = [], Counter()
    for record, place in records(path):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not record["text"].strip():
            raise DataError(f'{place}: the field "text" has no text')
        if not isinstance(record.get("label"), str | int):
            raise DataError(f'{place}: the field "label" must be a text or a whole number')
        found.append(LabelledText(record["text"], str(record["label"])))
        unread.update(name for name in record if name not in ("text", "label"))
    if not found:
        raise DataError(f"{path} holds no labelled text")
    log_unread(path, unread)
    return found


def _train_and_test(settings: ProbeEvaluation) -> tuple[list[LabelledText], list[LabelledText]]:
    data = read_labelled(settings.data)
    if settings.test is not None:
        return data, read_labelled(settings.test)
    from sklearn.model_selection import train_test_split

    labels = [one.label for one in data]
    try:
        train, test = train_test_split(data, test_size=settings.test_share, random_state=settings.seed, stratify=labels)
    except ValueError as error:
        raise DataError(f"{settings.data} cannot be divided with test_share={settings.test_share}: {error}") from None
    return train, test


def _check(train: list[LabelledText], test: list[LabelledText], settings: ProbeEvaluation) -> None:
    counts = Counter(one.label for one in train)
    if len(counts) < 2:
        raise DataError(f"{settings.data} has only the label {next(iter(counts))!r}: a probe needs at least two")
    label, least = min(counts.items(), key=lambda item: item[1])
    if least < settings.folds:
        raise DataError(
            f"{settings.data} has {least} training texts with the label {label!r}, too few for {settings.folds} parts: "
            f"give folds={max(least, 2)} or more texts"
        )
    unknown = sorted({one.label for one in test} - set(counts))
    if unknown:
        raise DataError(f"{settings.test} has labels that the training texts do not have: {', '.join(unknown)}")


def _metrics(right: list[str], answers: list[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    labels = sorted(set(right))
    f1 = f1_score(right, answers, labels=labels, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(right, answers)), "macro_f1": float(f1)}
