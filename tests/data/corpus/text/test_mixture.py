"""Mixtures beside GPT-3's table, and as settings of a run."""

import json
import shutil

import pytest
import yaml

from megagpt.config import groups
from megagpt.config import load as config_load
from megagpt.data.corpus.text.mixture import (
    GPT3,
    Corpus,
    contradictions,
    mix,
    override,
    published,
    read_corpus,
    read_weight,
    recipe_weights,
    repeated,
    size_weights,
    to_yaml,
)
from megagpt.errors import ConfigError, DataError

TABLE = """
common_crawl 410 60 0.44
webtext2 19 22 2.9
books1 12 8 1.9
books2 55 8 0.43
wikipedia 3 3 3.4
"""


def gpt3():
    corpora = published("gpt3")
    return mix(corpora, recipe_weights("gpt3", corpora), 300e9)


def test_gpt3s_table():
    """Sizes and weights as printed; epochs follow from them, and fit what is printed but for two rows."""
    rows = {line.split()[0]: list(map(float, line.split()[1:])) for line in TABLE.split("\n") if line}
    parts = gpt3()
    assert {part.corpus.name: [part.corpus.tokens / 1e9, part.weight * 100] for part in parts} == {
        name: row[:2] for name, row in rows.items()
    }
    assert {name: row.epochs for name, row in GPT3.items()} == {name: row[2] for name, row in rows.items()}
    for part in parts:
        tokens, weight, printed = rows[part.corpus.name]
        assert part.share == pytest.approx(weight / 101)
        assert part.epochs == pytest.approx(weight / 101 * 300 / tokens)
        off = abs(part.epochs / printed - 1)
        assert (off > 0.1) == (part.corpus.name in ("webtext2", "wikipedia")), part.corpus.name
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_contradictions_are_named():
    total, *rows = contradictions("gpt3")
    assert "sum to 101%" in total
    assert [row.split(":")[0] for row in rows] == ["webtext2", "wikipedia"]
    assert "3.5 epochs" in rows[0]
    assert "printed are 2.9" in rows[0]
    assert "does not explain" in rows[0]
    assert "3.0 epochs" in rows[1]
    assert "printed are 3.4" in rows[1]
    assert " explains it" in rows[1]


def test_the_recipe_has_the_weights_of_the_config():
    config = config_load.load(["data=gpt3", "model.vocab_size=50257"])
    assert {corpus.path: corpus.weight for corpus in config.data.corpora} == {
        part.corpus.path: part.weight for part in gpt3()
    }


def test_a_part_of_a_recipe():
    corpora = [Corpus("webtext2", "a", 19e9), Corpus("wikipedia", "b", 3e9)]
    parts = mix(corpora, recipe_weights("gpt3", corpora), 1e9)
    assert [part.share for part in parts] == pytest.approx([0.88, 0.12])
    with pytest.raises(ConfigError, match=r"webtext is not a corpus of the recipe gpt3; did you mean webtext2\?"):
        recipe_weights("gpt3", [Corpus("webtext", "a", 1.0)])


@pytest.mark.parametrize(("exponent", "equal"), [(1.0, [0.8, 0.15, 0.05]), (0.0, [1 / 3] * 3), (0.5, None)])
def test_sizes_to_the_power_of_an_exponent(exponent, equal):
    sizes = [80e9, 15e9, 5e9]
    weights = size_weights([Corpus(str(number), "", size) for number, size in enumerate(sizes)], exponent)
    powers = [size**exponent for size in sizes]
    assert list(weights.values()) == pytest.approx(equal or [power / sum(powers) for power in powers])


def test_repetition_is_warned_of():
    corpora = [Corpus("web", "", 10e9), Corpus("wiki", "", 1e9)]
    few = mix(corpora, {"web": 6, "wiki": 4}, 10e9)
    assert [part.epochs for part in few] == pytest.approx([0.6, 4.0])
    assert not repeated(few[:1])
    (warning,) = repeated(mix(corpora, {"web": 5, "wiki": 5}, 10e9))
    assert warning.startswith("wiki: 5.0 epochs; beyond 4")


@pytest.mark.parametrize(("text", "tokens"), [("web=410e9", 410e9), ("a.b-c_1=12", 12.0)])
def test_corpora_by_number(text, tokens):
    name = text.split("=")[0]
    assert read_corpus(text) == Corpus(name, f"data/{name}", tokens)


def test_corpora_by_file(tmp_path):
    prefix = str(tmp_path / "my corpus")
    (tmp_path / "my corpus.json").write_text(json.dumps({"tokens": 123, "tokenizer_sha256": "abc"}))
    assert read_corpus(f"web={prefix}.json") == Corpus("web", prefix, 123, "abc")
    for content in ("{}", "[]", "{", '{"tokens": "x"}', '{"tokens": 0}', '{"tokens": null}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad\.json is not the \.json of a corpus"):
            read_corpus(f"web={tmp_path}/bad.json")
    with pytest.raises(DataError, match=r"absent\.json"):
        read_corpus("web=absent.json")


@pytest.mark.parametrize("text", ["web", "=3", "web=", "web=x", "web=-1", "web=0", "web=nan", "web=inf", "a b=3"])
def test_corpora_that_are_none(text):
    with pytest.raises(ConfigError, match=r"NAME=|neither a number of tokens"):
        read_corpus(text)


@pytest.mark.parametrize("text", ["web", "web=x", "web=0", "web=-1", "web=nan"])
def test_weights_that_are_none(text):
    with pytest.raises(ConfigError, match=f"--weights {text}"):
        read_weight(text)


def test_mixtures_that_are_none():
    web, wiki = Corpus("web", "", 1.0, "one"), Corpus("wiki", "", 1.0, "other")
    with pytest.raises(ConfigError, match="each needs a different name"):
        mix([web, web], {"web": 1}, 1.0)
    with pytest.raises(ConfigError, match="weights are given for web, wiki, but the corpora are web"):
        mix([web], {"web": 1, "wiki": 1}, 1.0)
    with pytest.raises(ConfigError, match="--train-tokens 0"):
        mix([web], {"web": 1}, 0)
    with pytest.raises(DataError, match="web and wiki were tokenized with different tokenizers"):
        mix([web, wiki], {"web": 1, "wiki": 1}, 1.0)


@pytest.fixture
def odd_parts():
    corpora = [
        Corpus("web", "data/web", 1e9),
        Corpus("odd", 'my data/ü, {x}: "y" #1', 2e9),
        Corpus("c", "a/b.c-d", 3e9),
    ]
    return mix(corpora, {"web": 0.7, "odd": 0.2, "c": 1 / 3}, 1e9)


def test_the_file_is_what_a_run_reads(odd_parts, tmp_path, monkeypatch):
    """As an option of the group `data` in a checkout, and as an override anywhere."""
    folder = tmp_path / "configs"
    shutil.copytree(groups.CONFIG_DIR, folder)
    (folder / "data" / "mine.yaml").write_text(to_yaml(odd_parts, 1e9, ["a note: with a colon"]), encoding="utf-8")
    monkeypatch.setattr(config_load, "CONFIG_DIR", folder)
    monkeypatch.setattr(groups, "CONFIG_DIR", folder)
    expected = [(part.corpus.path, pytest.approx(part.weight, rel=1e-5)) for part in odd_parts]
    for settings in (["data=mine"], [override(odd_parts)], ["data=gpt3", override(odd_parts)]):
        config = config_load.load(["experiment=pretrain_125m", *settings])
        assert [(corpus.path, corpus.weight) for corpus in config.data.corpora] == expected


def test_the_file_says_what_it_means(odd_parts):
    text = to_yaml(odd_parts, 1e9, ["a note"])
    assert "# 3 corpora of 6e+09 tokens in all, for a run of 1e+09 tokens.\n# a note\n" in text
    assert yaml.safe_load(text)["corpora"][2] == {"path": "a/b.c-d", "weight": 0.333333}
    assert "# 1e+09 tokens, 56.8% of the samples, 0.57 epochs" in text
