"""`megagpt data mixture`, and its page and that of a classifier in a browser."""

import json
import logging
import re
import shutil
import subprocess

import pytest
import yaml

from megagpt.errors import ConfigError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


def test_gpt3s_table_is_written_and_shown(tmp_path, megagpt):
    path = tmp_path / "mixture.yaml"
    out = megagpt("data", "mixture", "--recipe", "gpt3", "--train-tokens", "300e9", "--output", path)
    assert [(one["path"], one["weight"]) for one in yaml.safe_load(path.read_text())["corpora"]] == [
        ("data/common_crawl", 0.6),
        ("data/webtext2", 0.22),
        ("data/books1", 0.08),
        ("data/books2", 0.08),
        ("data/wikipedia", 0.03),
    ]
    assert re.search(r"^webtext2 +1.9e\+10 +0.22 +21.8% +3.44$", out, re.MULTILINE)
    page = (tmp_path / "mixture.html").read_text()
    for text in (out, path.read_text(), page):
        assert "sum to 101%" in text
        assert "printed are 2.9" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    assert data[1]["series"][0]["y"] == pytest.approx([0.4347, 3.4393, 1.9802, 0.4320, 2.9703], abs=1e-4)


def test_corpora_of_ones_own(tmp_path, megagpt, caplog):
    (tmp_path / "web.json").write_text(json.dumps({"tokens": 1000, "tokenizer_sha256": "x"}))
    words = ["data", "mixture", f"web={tmp_path}/web.json", "wiki=100", "--train-tokens", 1000]
    with caplog.at_level(logging.WARNING):
        out = megagpt(*words, "--weights", "web=1", "--weights", "wiki=1", "--output", tmp_path / "m.yaml")
    assert "wiki: 5.0 epochs; beyond 4" in caplog.text
    assert "wiki: 5.0 epochs; beyond 4" in (tmp_path / "m.yaml").read_text()
    assert re.search(r"^web +1000 +1 +50.0% +0.50$", out, re.MULTILINE)
    caplog.clear()
    assert re.search(r"^wiki .* 9.1% +0.91$", megagpt(*words, "--output", tmp_path / "p.yaml"), re.MULTILINE)
    assert not caplog.records
    out = megagpt(*words, "--exponent", 0, "--output", tmp_path / "e.yaml")
    assert re.search(r"^web .* 50.0% +0.50$", out, re.MULTILINE)
    assert yaml.safe_load((tmp_path / "e.yaml").read_text())["corpora"][0]["path"] == f"{tmp_path}/web"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no corpus is given"),
        (["web=1", "--recipe", "gpt3"], "web is not a corpus of the recipe gpt3; they are common_crawl"),
        (["web=1", "--exponent", "1", "--weights", "web=1"], "three ways to give the weights"),
        (["web=1", "--weights", "wob=1"], "weights are given for wob, but the corpora are web"),
        (["web=1", "--output", "m.json"], "a name that ends in .yaml"),
    ],
)
def test_mistakes_are_told_and_write_nothing(tmp_path, monkeypatch, megagpt, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        megagpt("data", "mixture", "--output", "m.yaml", "--train-tokens", 1, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_chromium_draws_the_pages(tmp_path, megagpt):
    megagpt("data", "mixture", "--recipe", "gpt3", "--train-tokens", "300e9", "--output", tmp_path / "m.yaml")
    for name, word in (("good", "river"), ("bad", "shoes")):
        lines = [json.dumps({"text": f"{word} {number}"}) for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    classes = ["--good", tmp_path / "good.jsonl", "--bad", tmp_path / "bad.jsonl"]
    megagpt("data", "quality", "train", *classes, "--output", tmp_path / "model")
    for page, bars in ((tmp_path / "m.html", 15), (tmp_path / "model" / "quality.html", 40)):
        words = [*OPTIONS.split(), "--disable-component-update", "--enable-logging=stderr"]
        words += ["--virtual-time-budget=10000", f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()]
        done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=900)
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert 'data-drawn="yes"' in done.stdout
        assert done.stdout.count('class="plot js-plotly-plot"') == 2
        assert done.stdout.count('class="point"') >= bars
