"""Classifiers beside their definitions, and folders of classifiers that were tampered with."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.quality.fast_text import FastTextLearner, FastTextModel, line_of
from megagpt.data.corpus.text.quality.hashing import BUCKETS, HashingLearner, HashingModel
from megagpt.data.corpus.text.quality.model import load_model, save_model
from megagpt.errors import DataError

TEXTS = """the treaty of the republic was signed in autumn by senators who debated it for a century
click here to buy cheap shoes free shipping subscribe now login cart the of a"""
GOOD, BAD = (line.split() for line in TEXTS.splitlines())


def documents(count: int, seed: int = 0) -> list[tuple[str, bool]]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = rng.choices(GOOD if number % 3 == 0 else BAD, k=rng.randint(1, 60)) + rng.choices(GOOD + BAD, k=10)
        words = [word.upper() if rng.random() < 0.1 else word for word in words]
        found.append((rng.choice([" ", "\n", "  "]).join(words) + rng.choice(["", ".", "!"]), number % 3 == 0))
    return found


def learned(found, learner):
    for number, (text, good) in enumerate(found):
        learner.add(Analysis(text), good, (number * 0.618) % 1)
    return learner.fit()


def bucket(word: str) -> int:
    """Of a word, without numpy."""
    return xxhash.xxh3_64_intdigest(word.lower().encode()) % 2**18


def test_hashing_scores_are_the_formula():
    model = learned(documents(90), HashingLearner())
    for text, _ in [*documents(20, seed=1), ("", False), ("words never seen", False), ("你好 the ÜBER", True)]:
        words = text.split() if "你" not in text else ["你", "好", "the", "über"]
        logit = model.bias + sum(model.weights[bucket(word)] for word in words)
        assert model.score(Analysis(text)) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-12)


@pytest.mark.parametrize("l2", [0.5, 4.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_hashing_is_at_the_minimum_of_the_stated_loss(l2, balanced):
    """The gradient of l2 / 2 |w|^2 + the sum of the log-losses is nil, worked out word by word."""
    found = documents(90)
    model = learned(found, HashingLearner(l2=l2, balanced=balanced))
    goods = sum(good for _, good in found)
    gradient, of_bias = Counter(), 0.0
    for text, good in found:
        weight = len(found) / 2 / (goods if good else len(found) - goods) if balanced else 1
        error = weight * (model.score(Analysis(text)) - good)
        of_bias += error
        for word in text.split():
            gradient[bucket(word)] += error
    assert abs(of_bias) < 2e-3
    assert set(np.flatnonzero(model.weights)) <= set(gradient)
    assert max(abs(value + l2 * model.weights[place]) for place, value in gradient.items()) < 2e-3


def test_hashing_survives_extreme_documents():
    model = HashingModel(np.full(BUCKETS, 5.0), 0.0)
    assert model.score(Analysis("word " * 100_000)) == 1.0
    model.weights[:] = -5.0
    assert 0 <= model.score(Analysis("word " * 100_000)) < 1e-300


@pytest.mark.parametrize("method", ["hashing", "fasttext"])
def test_the_order_in_which_documents_come_makes_no_difference(tmp_path, method):
    found = documents(60)
    files = []
    for name, seed in (("one", 0), ("two", 1)):
        folder = tmp_path / name
        folder.mkdir()
        learner = HashingLearner() if method == "hashing" else FastTextLearner(folder, bucket=4096, dim=10)
        for place in random.Random(seed).sample(range(len(found)), len(found)):
            learner.add(Analysis(found[place][0]), found[place][1], (place * 0.618) % 1)
        files.append(learner.fit().save(folder).read_bytes())
        assert sorted(path.name for path in folder.iterdir()) == [f"model.{'npz' if method == 'hashing' else 'bin'}"]
    assert files[0] == files[1]


def fast(folder: Path, **settings) -> FastTextModel:
    return learned(documents(90), FastTextLearner(folder, bucket=4096, dim=10, **settings))


def test_fasttext_scores_are_those_of_its_library(tmp_path):
    import fasttext

    model = fast(tmp_path, epoch=30)
    path = model.save(tmp_path)
    library = fasttext.load_model(str(path))
    assert sorted(library.get_labels()) == ["__label__bad", "__label__good"]
    scores = {True: [], False: []}
    for text, good in documents(60, seed=1):
        labels, chances = library.predict(" ".join(text.split()), k=2)
        expected = dict(zip(labels, chances, strict=True))["__label__good"]
        assert model.score(Analysis(text)) == pytest.approx(min(1, expected), abs=1e-6)
        scores[good].append(expected)
    assert np.mean(scores[True]) > np.mean(scores[False]) + 0.2
    for odd in ("", " \n", "\0", "你好", "\ud800"):
        assert 0 <= model.score(Analysis(odd)) <= 1


def test_fasttext_learns_bigrams(tmp_path):
    """The two classes have the same words, in another order."""
    rng = random.Random(0)
    pairs = [("red", "fish"), ("blue", "bird"), ("old", "tree"), ("new", "road")]
    found = []
    for number in range(200):
        words = [word for _ in range(8) for word in rng.choice(pairs)[:: 1 if number % 2 else -1]]
        found.append((" ".join(words), bool(number % 2)))
    model = learned(found, FastTextLearner(tmp_path, bucket=4096, dim=10, epoch=50, lr=0.5))
    scores = np.array([model.score(Analysis(text)) for text, _ in found])
    labels = np.array([good for _, good in found])
    assert (scores[labels] > 0.9).all()
    assert (scores[~labels] < 0.1).all()


@pytest.mark.parametrize(
    "text", ["__label__good", "a __label__good b", "____label____label__bad", "__label___x__label__good__"]
)
def test_no_word_can_pass_for_a_label(tmp_path, text):
    line = line_of(Analysis(text))
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert not any(word.startswith("__label__") for word in line.split())
    learner = FastTextLearner(tmp_path, bucket=4096, dim=4)
    for number in range(20):
        learner.add(Analysis(f"{text} x"), bool(number % 2), number / 20)
    assert sorted(learner.fit().model.get_labels()) == ["__label__bad", "__label__good"]


@pytest.fixture(params=["hashing", "fasttext"])
def folder(request, tmp_path) -> Path:
    model = learned(documents(60), HashingLearner()) if request.param == "hashing" else fast(tmp_path)
    save_model(model, tmp_path)
    return tmp_path


def test_a_model_is_loaded_as_it_was(folder):
    text = Analysis(documents(5)[0][0])
    one, two = load_model(folder), load_model(str(folder))
    assert one.score(text) == two.score(text)
    assert 0 < one.score(text) < 1


def change(folder: Path, **values) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_model_that_was_changed_is_refused(folder):
    file = folder / json.loads((folder / "model.json").read_text())["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256 is another"):
        load_model(folder)
    file.unlink()
    with pytest.raises(DataError, match="cannot read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 0}, "version 0, not 1: train it again"),
        ({"method": "gpt"}, "names the method 'gpt'"),
        ({"file": "../model.npz"}, "and the file '../model.npz'"),
    ],
)
def test_another_description_is_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(DataError, match=message):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"version": 1}'])
def test_a_folder_without_a_model_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(DataError, match="holds no model of `megagpt data quality train`"):
        load_model(tmp_path)


def test_files_of_other_things_are_refused(tmp_path):
    """With the right SHA-256, as somebody could write it."""
    import fasttext

    np.savez(tmp_path / "objects.npz", weights=np.array([{}] * 3, object), bias=0.0)
    with pytest.raises(DataError, match="holds no weights"):
        HashingModel.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "nan.npz", weights=np.full(BUCKETS, np.nan), bias=0.0)
    np.savez(tmp_path / "small.npz", weights=np.zeros(7), bias=0.0)
    for name in ("nan", "small"):
        with pytest.raises(DataError, match="finite weights"):
            HashingModel.load(tmp_path / f"{name}.npz")
    (tmp_path / "text.bin").write_bytes(b"no model at all")
    with pytest.raises(DataError, match="not a fastText model"):
        FastTextModel.load(tmp_path / "text.bin")
    (tmp_path / "train.txt").write_text("__label__x a b c\n__label__y d e f\n" * 5)
    other = fasttext.train_supervised(str(tmp_path / "train.txt"), dim=2, bucket=10, verbose=0, minCount=1)
    other.save_model(str(tmp_path / "other.bin"))
    with pytest.raises(DataError, match="has the labels"):
        FastTextModel.load(tmp_path / "other.bin")
