"""Training from files, the figures on what is held out, and scores of files."""

import gzip
import json
import logging
import math
import random
from pathlib import Path

import numpy as np
import pytest

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.quality.keep import draw, read_scores
from megagpt.data.corpus.text.quality.measure import measure
from megagpt.data.corpus.text.quality.model import load_model
from megagpt.data.corpus.text.quality.score import score_files
from megagpt.data.corpus.text.quality.texts import Texts
from megagpt.data.corpus.text.quality.train import Training, train
from megagpt.errors import ConfigError, DataError

TEXTS = """the treaty of the republic was signed in autumn by senators who debated it for a century
click here to buy cheap shoes free shipping subscribe now login cart the of a"""
WORDS = {name: line.split() for name, line in zip(("good", "bad"), TEXTS.splitlines(), strict=True)}
SMALL = {"bucket": 4096, "dim": 10, "epoch": 30}


def texts_of(name: str, count: int) -> list[str]:
    """Documents with a number each, so that all differ; a few words are of the other class."""
    rng = random.Random(name)
    other = WORDS["bad" if name == "good" else "good"]
    return [
        " ".join([*rng.choices(WORDS[name], k=rng.randint(3, 30)), *rng.choices(other, k=6), str(number), name])
        for number in range(count)
    ]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return path


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    return jsonl(tmp_path / "good.jsonl", texts_of("good", 150)), jsonl(tmp_path / "bad.jsonl", texts_of("bad", 300))


def run(files, output: Path, **settings) -> dict:
    good, bad = (Texts([file]) if isinstance(file, Path) else Texts(file) for file in files)
    return train(good, bad, output, Training(**settings))


@pytest.mark.parametrize("method", ["hashing", "fasttext"])
def test_held_out_documents_are_not_learnt_from(files, tmp_path, method):
    settings = {"fasttext": SMALL} if method == "fasttext" else {}
    about = run(files, tmp_path / "model", method=method, held_out=0.25, **settings)
    assert about == json.loads((tmp_path / "model" / "quality.json").read_text())
    held_out, trained = about["held_out"]["documents"], about["trained_on"]
    texts = {"good": texts_of("good", 150), "bad": texts_of("bad", 300)}
    chosen = {name: [text for text in found if draw(text, "held out") < 0.25] for name, found in texts.items()}
    assert held_out == {name: len(found) for name, found in chosen.items()}
    assert trained == {"good": 150 - held_out["good"], "bad": 300 - held_out["bad"], "in_both": 0}
    assert 0.15 < held_out["bad"] / 300 < 0.35
    only = [
        jsonl(tmp_path / f"{name}.jsonl", [text for text in texts[name] if text not in chosen[name]]) for name in texts
    ]
    model = load_model(tmp_path / "model")
    scores = {name: [model.score(Analysis(text)) for text in found] for name, found in chosen.items()}
    assert about["held_out"]["mean_score"] == pytest.approx({name: np.mean(found) for name, found in scores.items()})
    assert about["held_out"]["roc_auc"] > 0.95
    again = [
        [only[0], jsonl(tmp_path / "x.jsonl", chosen["good"])],
        [only[1], jsonl(tmp_path / "y.jsonl", chosen["bad"])],
    ]
    run(again, tmp_path / "again", method=method, held_out=0.25, **settings)  # other files, the same documents
    file = json.loads((tmp_path / "model" / "model.json").read_text())["file"]
    assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
    assert (tmp_path / "again" / "quality.json").read_bytes() == (tmp_path / "model" / "quality.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(["model.json", "quality.json", file])


def test_a_limit_takes_a_random_choice(files, tmp_path):
    about = run(files, tmp_path / "model", documents=60)
    used = {name: about["trained_on"][name] + about["held_out"]["documents"][name] for name in ("good", "bad")}
    assert used == {"good": 60, "bad": 60}
    bad = sorted(texts_of("bad", 300), key=lambda text: draw(text, "order"))[:60]
    chosen = jsonl(tmp_path / "chosen.jsonl", bad)
    run((files[0], chosen), tmp_path / "other", documents=60)
    assert (tmp_path / "other" / "model.npz").read_bytes() == (tmp_path / "model" / "model.npz").read_bytes()
    about = run(files, tmp_path / "all", documents=200)
    assert about["trained_on"]["good"] + about["held_out"]["documents"]["good"] == 150


def test_a_seed_holds_out_other_documents(files, tmp_path):
    one, two = (run(files, tmp_path / str(seed), seed=seed)["held_out"]["mean_score"] for seed in (0, 1))
    assert one != two


def test_balanced_classes_raise_the_scores_of_the_smaller_one(files, tmp_path):
    plain, balanced = (
        run(files, tmp_path / str(flag), balanced=flag, l2=30.0)["held_out"]["mean_score"]["good"]
        for flag in (False, True)
    )
    assert balanced > plain


def test_figures_are_those_of_plain_python():
    rng = np.random.default_rng(0)
    good = rng.random(300) < 0.4
    scores = np.clip(np.round(97 * rng.normal(0.35 + 0.3 * good, 0.25)) / 97, 0, 1)  # ties, and no edge of a bin
    found = measure(scores, good)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert found["roc_auc"] == pytest.approx(sum(pairs) / len(pairs))
    precision, recall, total = [], [], 0.0
    for threshold in sorted(set(scores), reverse=True):
        kept = scores >= threshold
        precision.append((good & kept).sum() / kept.sum())
        recall.append((good & kept).sum() / good.sum())
    for number, value in enumerate(precision):
        total += value * (recall[number] - (recall[number - 1] if number else 0))
    assert found["average_precision"] == pytest.approx(total)
    inside = np.clip(scores, np.finfo(float).eps, 1 - np.finfo(float).eps)
    losses = [-math.log(score if label else 1 - score) for score, label in zip(inside, good, strict=True)]
    assert found["log_loss"] == pytest.approx(sum(losses) / len(losses))
    for name, values in (("good", scores[good]), ("bad", scores[~good])):
        counts = [sum(1 for score in values if min(int(score * 20), 19) == part) for part in range(20)]
        assert found["histogram"][name] == counts
        assert sum(counts) == len(values) == found["documents"][name]
    error = 0.0
    for part in found["reliability"]:
        chosen = [place for place, score in enumerate(scores) if min(int(score * 10), 9) == round(part["from"] * 10)]
        assert part["documents"] == len(chosen)
        assert part["mean_score"] == pytest.approx(sum(scores[place] for place in chosen) / len(chosen))
        assert part["share_good"] == pytest.approx(sum(good[place] for place in chosen) / len(chosen))
        error += len(chosen) / 300 * abs(part["mean_score"] - part["share_good"])
    assert found["calibration_error"] == pytest.approx(error)
    pareto, *tops = found["kept"]
    assert pareto["good"] == pytest.approx(sum((2 - score) ** -9 for score in scores[good]) / good.sum())
    for top in tops:
        assert top["bad"] >= top["share"] - 1 / (~good).sum()
        assert top["good"] == pytest.approx((scores[good] >= top["threshold"]).mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bert"}, "the methods are hashing, fasttext"),
        ({"held_out": 0.0}, "--held-out 0"),
        ({"held_out": 1.0}, "--held-out 1"),
        ({"l2": 0.0}, "--l2 0"),
        ({"documents": 0}, "--documents 0"),
        ({"method": "fasttext", "balanced": True}, "--balanced is for the method hashing"),
    ],
)
def test_settings_without_sense_are_refused(files, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(files, tmp_path / "model", **settings)


def test_a_class_without_documents_is_refused(files, tmp_path):
    one = jsonl(tmp_path / "one.jsonl", ["a single document"])
    with pytest.raises(DataError, match=r"--good: no document is (left to learn from|held out)"):
        run((one, files[1]), tmp_path / "model")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl:1: empty: more than 0 malformed"):
        run((files[0], tmp_path / "empty.jsonl"), tmp_path / "model")


def test_documents_in_both_classes_are_told(files, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        about = run((files[0], [files[1], files[0]]), tmp_path / "model")
    assert about["trained_on"]["in_both"] == about["trained_on"]["good"]
    assert "in both classes" in caplog.text


def test_a_classifier_without_use_is_told(files, tmp_path, caplog):
    same = [jsonl(tmp_path / f"{name}.jsonl", [f"the same words {name}{n}" for n in range(99)]) for name in "ab"]
    for classes, told in ((same, True), (files, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(classes, tmp_path / "model")
        assert ("hardly tells the classes apart" in caplog.text) == told


def test_malformed_records_are_named_and_limited(files, tmp_path, caplog):
    with files[0].open("a") as file:
        file.write('{"text": 3}\n{"text"\n')
    with pytest.raises(DataError, match=r"good\.jsonl:152: .*more than 1 malformed records"):
        train(Texts([files[0]], max_rejected=1), Texts([files[1]]), tmp_path / "model")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        about = train(Texts([files[0]], max_rejected=2), Texts([files[1]]), tmp_path / "model")
    assert about["rejected"] == 2
    assert [record.message.split("/")[-1][:15] for record in caplog.records] == ["good.jsonl:151:", "good.jsonl:152:"]


def test_scores_of_files(files, tmp_path):
    run(files, tmp_path / "model")
    model = load_model(tmp_path / "model")
    good = texts_of("good", 150)
    path = tmp_path / "corpus.jsonl.gz"
    lines = [json.dumps({"text": text}) for text in good[:20]]
    path.write_bytes(gzip.compress("\n".join([*lines[:7], "{broken", *lines[7:]]).encode()))
    expected = [model.score(Analysis(text)) for text in good[:20]]
    for name in ("scores.npy", "scores.jsonl"):
        texts = Texts([path], max_rejected=1)
        about = score_files(model, texts, tmp_path / name, [0.1, 1.0])
        scores = read_scores(tmp_path / name)
        assert np.isnan(scores[7])
        assert np.delete(scores, 7).tolist() == expected
        assert about["documents"] == 20
        assert about["rejected"] == 1
        assert about["bytes"] == sum(len(text.encode()) for text in good[:20])
        assert about["thresholds"] == {"0.1": sorted(expected)[-2], "1": min(expected)}
        assert about["kept_by_pareto"] == pytest.approx(np.mean([(2 - score) ** -9 for score in expected]))
    line = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[7])
    assert line["score"] is None
    assert "corpus.jsonl.gz:8: invalid JSON" in line["reason"]
    with pytest.raises(ConfigError, match=r"written as \.npy or \.jsonl"):
        score_files(model, Texts([path]), tmp_path / "scores.csv")
    with pytest.raises(DataError, match="malformed"):
        score_files(model, Texts([path]), tmp_path / "other.npy")
    assert not (tmp_path / "other.npy").exists()
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="no document to score"):
        score_files(model, Texts([tmp_path / "bad.jsonl"], max_rejected=1), tmp_path / "other.npy")


def test_real_text_is_told_apart(data_dir, tmp_path):
    """An encyclopaedia and speeches from a crawl, by GPT-3's method."""
    good = [data_dir / "wiki_c4_demo" / "wiki_demo.jsonl.gz", data_dir / "us_speeches" / "inaugural.jsonl.gz"]
    about = train(
        Texts(good), Texts([data_dir / "wiki_c4_demo" / "c4_demo.jsonl.gz"]), tmp_path, Training(held_out=0.3)
    )
    assert about["held_out"]["roc_auc"] > 0.95
    pareto = about["held_out"]["kept"][0]
    assert pareto["good"] > 0.5 > 0.1 > pareto["bad"]
