"""`megagpt data quality`."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest

from megagpt.cli.data.quality.train import command
from megagpt.data.corpus.text.quality.fast_text import SETTINGS
from megagpt.data.corpus.text.quality.model import METHODS
from megagpt.data.corpus.text.quality.train import Training
from megagpt.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path):
    rng = random.Random(0)
    for name, words in (("good", "senate treaty republic river law"), ("bad", "buy cheap shoes cart login")):
        texts = [" ".join([*rng.choices(words.split(), k=20), str(number)]) for number in range(120)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'body': text})}\n" for text in texts))
    return tmp_path


def test_a_classifier_is_trained_shown_and_asked(files, megagpt):
    classes = ["--good", files / "good.jsonl", "--bad", files / "bad.jsonl", "--key", "body"]
    out = megagpt("data", "quality", "train", *classes, "--held-out", 0.2, "--output", files / "<m>")
    about = json.loads((files / "<m>" / "quality.json").read_text())
    assert f"{sum(about['held_out']['documents'].values())} documents held out, ROC AUC 1.0000" in out
    page = (files / "<m>" / "quality.html").read_text()
    assert "Quality classifier &lt;m&gt;" in page
    assert "<m>" not in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    assert [len(chart["series"]) for chart in data] == [2, 2]
    assert sum(data[0]["series"][0]["y"]) == pytest.approx(1)

    score = ["data", "quality", "score", files / "<m>", files / "bad.jsonl", files / "good.jsonl", "--key", "body"]
    out = megagpt(*score, "--output", files / "scores.npy", "--top", "0.5,0.01")
    scores = np.load(files / "scores.npy")
    assert scores.shape == (240,)
    assert scores[:120].max() < scores[120:].min()
    assert f"top 50.00%: scores of {sorted(scores)[120]:.6g} and more" in out
    assert "240 documents" in out
    found = json.loads(megagpt(*score, "--output", files / "scores.jsonl", "--top", "0.5", "--json"))
    assert found["thresholds"] == {"0.5": sorted(scores)[120]}
    assert [json.loads(line)["score"] for line in (files / "scores.jsonl").read_text().splitlines()] == scores.tolist()


def test_fasttext_is_trained_by_name(files, megagpt):
    classes = ["--good", files / "good.jsonl", "--bad", files / "bad.jsonl", "--key", "body", "--method", "fasttext"]
    megagpt("data", "quality", "train", *classes, "--buckets", 1000, "--dimension", 8, "--output", files / "model")
    about = json.loads((files / "model" / "quality.json").read_text())
    assert about["settings"]["bucket"] == 1000
    assert about["settings"]["dim"] == 8
    assert (files / "model" / "model.bin").stat().st_size < 100_000
    assert "fastText (DCLM)" in (files / "model" / "quality.html").read_text()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ["train", "--good", "good.jsonl", "--bad", "absent.jsonl", "--output", "m"],
            DataError,
            "absent.jsonl: no such",
        ),
        (["train", "--good", "good.jsonl", "--bad", "bad.jsonl", "--output", "m"], DataError, "missing key"),
        (["score", "absent", "good.jsonl", "--output", "s.npy"], DataError, "holds no model"),
        (
            ["score", "absent", "good.jsonl", "--output", "s.npy", "--top", "much"],
            ConfigError,
            "--top much: give shares",
        ),
    ],
)
def test_mistakes_are_told(files, monkeypatch, megagpt, words, error, message):
    monkeypatch.chdir(files)
    with pytest.raises(error, match=message):
        megagpt("data", "quality", *words)


def test_defaults_are_those_of_the_library():
    fields = {field.name: field.default for field in dataclasses.fields(Training)}
    given = {parameter.name: parameter for parameter in command.params}
    for name in ("method", "held_out", "l2", "seed"):
        assert given[name].default == fields[name]
    assert list(given["method"].type.choices) == list(METHODS)
    for name, key in (("buckets", "bucket"), ("dimension", "dim"), ("epochs", "epoch")):
        assert f"[default: {SETTINGS[key]}]" in given[name].help
