"""The proof of the corpus: what is planted is known, counts are right where they can be told by hand, and it judges."""

import json
from collections import Counter

import planted_crawl
import prove_corpus
import pytest
from planted_crawl import ADDRESS, COPIES, DROPPED, EVALUATION, EXACT, FOREIGN, Raw, make_crawl
from prove_corpus import Outcome, planted_table, steps_table
from raw_crawl import cut, unwrapped

from megagpt.errors import ConfigError, MegaGPTError

NEAR = next(iter(planted_crawl.NEAR))
PASSAGE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_what_is_planted_is_there(data_dir):
    crawl = make_crawl(data_dir, 0.6, seed=1)
    assert crawl == make_crawl(data_dir, 0.6, seed=1) != make_crawl(data_dir, 0.6, seed=2)
    kinds = Counter(page.kind for page in crawl.pages)
    assert set(kinds) >= {*DROPPED, *COPIES, EVALUATION, ADDRESS, "web", "novels"} and min(kinds.values()) >= 2
    texts = [page.text for page in crawl.pages]
    for page in crawl.pages:
        assert all(planted in page.text for planted in page.planted)
        assert (page.origin is not None) == (page.kind in COPIES)
        if page.kind == EXACT:
            assert texts[page.origin] == page.text
        elif page.kind in COPIES:
            pairs = zip(texts[page.origin].split(" "), page.text.split(" "), strict=True)
            changed = sum(one != other for one, other in pairs) / len(page.text.split(" "))
            share = planted_crawl.NEAR[page.kind]
            assert 0 < changed <= share + 1 / len(page.text.split(" "))
    assert crawl.held_out and crawl.curated
    assert not {*crawl.held_out} & {*texts, *crawl.curated} and not {*crawl.curated} & {*texts}
    with pytest.raises(ConfigError, match="at least 50 are needed"):
        make_crawl(data_dir, 0.05, seed=1)


def test_pages_of_books():
    lines = ["It was a dark night, and the rain fell in torrents,", 'on the roofs of London."'] * 40
    assert unwrapped("\n".join(lines)).split("\n\n") == [" ".join(lines[:2])] * 40
    assert unwrapped("a\nb") == "a\nb"
    text = "\n".join(f"Paragraph {number} of a text." for number in range(100))
    pages = cut(text, 200)
    assert "\n".join(pages) == text and max(map(len, pages)) <= 200 and len(pages) < 20


def test_tables():
    """Pages of which it is told by hand what was found and what was missed."""
    pages = [
        Raw("web", "a"),
        Raw("web", "b"),
        Raw(FOREIGN, "c"),
        Raw(FOREIGN, "d"),
        Raw(EXACT, "a", origin=0),
        Raw(NEAR, "bb", origin=1),
        Raw(EVALUATION, f"x {PASSAGE} y", planted=(PASSAGE,)),
        Raw(EVALUATION, f"z {PASSAGE} y", planted=(PASSAGE,)),
        Raw(ADDRESS, "e 1.2.3.4 f", planted=("1.2.3.4", "a@b.com")),
        Raw("web", "g"),
    ]
    kept = {
        1: "b",
        3: "d",
        4: "a",
        5: "bb",
        6: f"it has One, two {PASSAGE[7:]} still",
        7: "z one two three four five six seven eight nine ten eleven twelve",
        8: "e <IP> f a@b.com",
    }
    dropped = {0: ("exact duplicate", ""), 2: ("languages: other language", "de"), 9: ("languages: unsure", "")}
    outcome = Outcome(kept, dropped, {"e-mail address": {8, 1}, "IP address": {8}})
    planted = planted_table(pages, outcome)
    assert {kind: (row["planted"], row["found"], row["recall"]) for kind, row in planted.items() if row["planted"]} == {
        FOREIGN: (2, 1, 0.5),
        EXACT: (1, 1, 1.0),
        NEAR: (1, 0, 0.0),
        EVALUATION: (2, 1, 0.5),
        ADDRESS: (2, 1, 0.5),
    }
    assert planted[FOREIGN]["by"] == {"languages: other language": 1}
    assert planted[EVALUATION]["by"] == {"cut out": 1}
    steps = steps_table(pages, outcome)
    assert steps["languages"] == {"dropped": 2, "planted": 1, "precision": 0.5, "others": {"web": 1}}
    assert steps["exact duplicate"]["precision"] == 1.0
    assert steps["e-mail address"] == {"changed": 2, "planted": 1, "precision": 0.5, "others": {"web": 1}}
    assert steps["overlap with evaluations"]["precision"] is None


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        ({"raw": 2.0, "filtered": 1.9, "mixed": 1.8}, None),
        ({"raw": 2.0, "filtered": 2.0, "mixed": 1.8}, "^filtered text does not give a lower loss"),
        ({"raw": 2.0, "filtered": 2.1, "mixed": 2.2}, "^filtered and mixed text does not give a lower loss"),
    ],
)
def test_no_gain_fails(monkeypatch, tmp_path, mean, message):
    monkeypatch.setattr(prove_corpus, "make_crawl", lambda *_: planted_crawl.Crawl([], [], []))
    monkeypatch.setattr(prove_corpus, "make_corpus", lambda *_: Outcome({}, {}, {}))
    monkeypatch.setattr(prove_corpus, "train", lambda *_: {"mean_loss": mean})
    output = tmp_path / "out" / "proof.json"
    monkeypatch.setattr("sys.argv", ["prove_corpus.py", "--data", str(tmp_path), "--output", str(output)])
    if message is None:
        prove_corpus.main()
    else:
        with pytest.raises(MegaGPTError, match=message):
            prove_corpus.main()
    assert json.loads(output.read_text())["training"]["mean_loss"] == mean


@pytest.mark.slow
@pytest.mark.thorough
def test_proof(monkeypatch, tmp_path, data_dir):
    """All of it, with a model that learns next to nothing: the figures are there, whatever they are."""
    output = tmp_path / "proof.json"
    options = ["--mb", "0.6", "--train-tokens", "3000", "--seeds", "1", "--ranks", "1", "--output", output]
    command = ["prove_corpus.py", "--data", data_dir, "--folder", tmp_path / "work", *options]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    try:
        prove_corpus.main()
    except MegaGPTError as error:
        assert "does not give a lower loss" in str(error)
    found = json.loads(output.read_text())
    planted = found["planted"]
    for kind in (FOREIGN, EXACT, "boilerplate", "keyword spam", "repeated lines", "gibberish", "numbers"):
        assert planted[kind]["recall"] == 1.0, kind
    assert planted[NEAR]["recall"] >= 0.9 and planted[EVALUATION]["recall"] == planted[ADDRESS]["recall"] == 1.0
    assert found["steps"]["languages"]["precision"] == found["steps"]["near-duplicate"]["precision"] == 1.0
    training = found["training"]
    assert set(training["loss"]) == {"raw", "filtered", "mixed"} and training["held_out_pages"] > 5
    assert training["tokens"]["filtered"] < training["tokens"]["raw"]
    for name, (loss,) in training["loss"].items():
        assert 2 < loss < 10 and training["mean_loss"][name] == loss
