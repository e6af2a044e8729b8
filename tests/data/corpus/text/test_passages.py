"""Lines and runs of sentences that stood before are cut out, as a plain loop over the whole corpus would."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datatrove", reason="megagpt[corpora] is not installed")

import zstandard

from megagpt.data.corpus.text.build import build
from megagpt.data.corpus.text.limits import C4, Duplicates
from megagpt.data.corpus.text.options import Options
from megagpt.data.corpus.text.passages import edited, passages
from megagpt.data.corpus.text.recipe import Recipe
from megagpt.data.corpus.text.steps import FindShare


def test_what_is_a_passage():
    text = "One is one. Two is two.\nThree is three.\n\n  Four is four.  \n"

    def found(duplicates: Duplicates) -> list[str]:
        return [text[start:end] for start, end in passages(text, duplicates)[0]]

    assert found(Duplicates(lines=True)) == ["One is one. Two is two.\n", "Three is three.\n", "  Four is four.  \n"]
    assert [" ".join(part.split()) for part in found(Duplicates(spans=3))] == [
        "One is one. Two is two. Three is three.",
        "Two is two. Three is three. Four is four.",
    ]
    assert found(Duplicates(spans=5)) == found(Duplicates()) == []
    _, hashes = passages("Same.\nsame. \nOther.", Duplicates(lines=True))
    assert (hashes[0] == hashes[1]).all() and (hashes[0] != hashes[2]).any()


def test_overlapping_passages_are_cut_once():
    assert edited("abcdefgh", [(1, 4), (2, 6)], Recipe()) == ("agh", "")
    assert edited("abc", [], Recipe()) == ("abc", "")
    assert edited("abc", [(0, 3)], Recipe()) == ("", "0 sentences are left of it")
    recipe = Recipe(c4=C4(min_sentences=2))
    assert edited("One is one. Two is two. Three is three.", [(0, 12)], recipe)[1] == ""
    assert edited("One is one. Two is two.", [(0, 12)], recipe)[1] == "1 sentences are left of it"


def lines_once(texts: list[str]) -> list[str]:
    """Every line of all texts, in order, the first time only."""
    seen: set[str] = set()
    kept = []
    for text in texts:
        left = []
        for line in text.split("\n"):
            key = line.strip().lower()
            if not key or key not in seen:
                left.append(line)
            seen.add(key)
        kept.append("\n".join(left).strip() if len(left) < text.count("\n") + 1 else text)
    return [text for text in kept if text]


def corpus(folder: Path) -> list[str]:
    texts = [zstandard.open(path, "rt", encoding="utf-8").read() for path in sorted(folder.glob("*.jsonl.zst"))]
    return [json.loads(line)["text"] for text in texts for line in text.removesuffix("\n").split("\n")]


@pytest.mark.parametrize("shard_mb", [0.001, 1.0])
def test_lines_against_a_set(tmp_path, shard_mb):
    dice = random.Random(0)
    lines = [f"This is line {number} of them." for number in range(60)]
    texts = ["\n".join(dice.choice([*lines, "", "  "]) for _ in range(dice.randrange(1, 8))) for _ in range(80)]
    texts = [text for text in texts if text.strip()]
    for number in range(4):
        part = texts[len(texts) * number // 4 : len(texts) * (number + 1) // 4]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    options = Options("web", Recipe(duplicates=Duplicates(lines=True)), shard_mb=shard_mb)
    report = build(sorted(tmp_path.glob("*.jsonl")), tmp_path / "out", options).report
    made = corpus(tmp_path / "out")
    assert made == lines_once(texts) and 20 < len(made) < len(texts)
    assert report["dropped"]["duplicate passages"]["documents"] == len(texts) - len(made)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_best_share_is_that_of_sorting(tmp_path, share, ties):
    dice = np.random.default_rng(0)
    scores = dice.random(1000)
    scores = np.round(scores, 1) if ties else scores**20
    (tmp_path / "scores").mkdir()
    for shard, part in enumerate(np.array_split(scores, 7)):
        part.astype("<f8").tofile(tmp_path / "scores" / f"{shard:05d}")
    FindShare(tmp_path, 7, share).do(0, 1)
    assert json.loads((tmp_path / "share").read_bytes()) == np.sort(scores)[::-1][max(1, round(share * 1000)) - 1]
