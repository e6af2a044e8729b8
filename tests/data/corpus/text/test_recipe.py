"""Recipes are read strictly, say what is wrong with a key or a value, and hold the published numbers."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
import yaml

from megagpt.config.groups import CORPUS_DIR
from megagpt.data.corpus.text.recipe import Recipe, from_dict, load_recipe, recipes, to_dict
from megagpt.errors import ConfigError

ON = {
    "gpt3": {"quality", "duplicates", "decontamination"},
    "c4": {"languages", "c4", "duplicates"},
    "gopher": {"gopher_quality", "gopher_repetition", "duplicates"},
    "fineweb": {"urls", "languages", "c4", "gopher_quality", "gopher_repetition", "fineweb", "pii", "duplicates"},
    "dclm": {"urls", "languages", "lines", "gopher_quality", "gopher_repetition", "quality", "duplicates"},
}


def test_there_are_five():
    assert set(recipes()) == set(ON)


@pytest.mark.parametrize("name", ON)
def test_a_preset_names_every_step_and_can_be_written_and_read(name, tmp_path):
    recipe = load_recipe(name)
    given = yaml.safe_load((CORPUS_DIR / f"{name}.yaml").read_text())
    assert set(given) == {field.name for field in dataclasses.fields(Recipe)}
    assert {step for step, limits in vars(recipe).items() if limits} == ON[name]
    assert from_dict(to_dict(recipe)) == recipe
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(to_dict(recipe)))
    assert load_recipe(tmp_path / "own.yaml") == load_recipe(str(tmp_path / "own.yaml")) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.c4 = None


@pytest.mark.parametrize("name", ON)
def test_every_number_has_a_comment_on_its_line_or_on_that_of_its_section(name):
    sections: list[str] = []
    for line in (CORPUS_DIR / f"{name}.yaml").read_text().splitlines():
        setting, _, comment = line.partition("#")
        value = setting.partition(":")[2].strip()
        if setting.strip() and not value:
            sections[(len(line) - len(line.lstrip())) // 2 :] = [comment]
        if any(map(str.isdigit, value)):
            assert comment or any(sections), line


def test_published_numbers():
    gpt3, c4, fineweb, dclm = (load_recipe(name) for name in ("gpt3", "c4", "fineweb", "dclm"))
    assert (gpt3.quality.rule, gpt3.quality.alpha) == ("pareto", 9.0)
    assert (gpt3.duplicates.near.words, gpt3.duplicates.near.buckets, gpt3.duplicates.near.hashes) == (1, 10, 1)
    limits = gpt3.decontamination
    assert (limits.ngram, limits.window, limits.min_piece) == (13, 200, 200)
    assert (limits.max_pieces, limits.max_documents) == (10, 10)
    assert (c4.c4.min_words, c4.c4.min_sentences, c4.duplicates.spans) == (5, 3, 3)
    assert (fineweb.c4.min_words, fineweb.c4.min_sentences, fineweb.c4.terminal_marks) == (3, 5, None)
    near = fineweb.duplicates.near
    assert 1 - (1 - 0.75**near.hashes) ** near.buckets == pytest.approx(0.77, abs=0.005)  # FineWeb's figure
    near = dclm.duplicates.near
    assert 1 - (1 - 0.8**near.hashes) ** near.buckets == pytest.approx(0.96, abs=0.005)
    assert load_recipe("gopher").gopher_repetition == fineweb.gopher_repetition == dclm.gopher_repetition


def test_overrides():
    recipe = load_recipe("gpt3", ["c4={}", "c4.min_sentences=2", "c4.terminal_marks=null", "quality=null"])
    assert (recipe.c4.min_sentences, recipe.c4.min_words, recipe.c4.terminal_marks) == (2, 3, None)
    assert recipe.quality is None and recipe.duplicates == load_recipe("gpt3").duplicates
    recipe = load_recipe("gpt3", ["duplicates.near.words=3", "languages={keep: [de, fr], min_score: 1}"])
    assert recipe.duplicates.near.words == 3 and recipe.languages.keep == ("de", "fr")
    assert recipe.languages.min_score == 1.0 and type(recipe.languages.min_score) is float
    assert load_recipe("gpt3", ["languages={}", "languages.model=a=b.bin"]).languages.model == "a=b.bin"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("c4.min_sentence=3", "c4.min_sentence: no such key; did you mean c4.min_sentences?"),
        ("gopher_qualty.min_words=3", "gopher_qualty: no such key; did you mean gopher_quality?"),
        ("gopher_qualty=null", "gopher_qualty: no such key; did you mean gopher_quality?"),
        ("zzz=3", "zzz: no such key; there are urls, languages"),
        ("duplicates.near.wrds=3", "duplicates.near.wrds: no such key; did you mean duplicates.near.words?"),
        ("lines.min_words=3", "lines is off in this recipe: turn it on with lines={} before"),
        ("languages.min_score=65", "languages.min_score: expected a number from 0 to 1, got 65.0"),
        ("languages.min_score=.nan", "languages.min_score: expected a number from 0 to 1, got nan"),
        ("languages.min_score=true", "languages.min_score: expected a number, got True"),
        ("languages.min_score=null", "languages.min_score: expected a number, got None"),
        ("languages.keep=en", "languages.keep: expected a list of words, such as [en, de], got 'en'"),
        ("languages.keep=[]", "languages.keep: expected a list of words, such as [en, de], got []"),
        ("languages.keep=[no]", "languages.keep: expected a list of words, such as [en, de], got [False]"),
        ("c4.min_words=2.5", "c4.min_words: expected a whole number or null, got 2.5"),
        ("c4.min_words=-1", "c4.min_words: expected a whole number from 0 or more, got -1"),
        ("c4.javascript=1", "c4.javascript: expected true or false, got 1"),
        ("urls.lists=datatroves", "urls.lists: expected one of small, datatrove, none, got 'datatroves'"),
        ("duplicates.near.words=0", "duplicates.near.words: expected a whole number from 1 or more, got 0"),
        ("c4=3", "c4: expected a mapping of keys to values, got 3"),
        ("c4", "'c4' cannot be read as an override: write STEP.KEY=VALUE"),
        ("=3", "'=3' cannot be read as an override"),
        ("c4..x=3", "'c4..x=3' cannot be read as an override"),
        ("c4.min_words=[", "'c4.min_words=[' cannot be read as an override"),
    ],
)
def test_wrong_overrides(override, message):
    with pytest.raises(ConfigError) as error:
        load_recipe("fineweb", [override])
    assert message in str(error.value)


def test_all_problems_are_named_at_once(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("c4: {min_word: 3, javascript: maybe}\nfoo: 1\n7: 1\n")
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and all(line.startswith(f"recipe {path}: ") for line in lines)
    assert "c4.min_word" in lines[0] and "c4.javascript" in lines[1] and "foo" in lines[2] and "7" in lines[3]


@pytest.mark.parametrize(
    "content", [b"c4: [1", b"\xff\xfe\x00", b"- 1\n- 2\n", b"only text", b"c4: !!python/name:os.system x"]
)
def test_files_that_are_no_recipe(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.yaml"):
        load_recipe(path)


def test_an_empty_file_takes_no_step(tmp_path):
    (tmp_path / "own.yaml").write_text("c4:\n")
    assert load_recipe(tmp_path / "own.yaml") == Recipe()


def test_names_that_are_near():
    with pytest.raises(ConfigError, match="recipe finweb: no such recipe, and no such file; did you mean fineweb"):
        load_recipe("finweb")
    with pytest.raises(ConfigError, match="there are c4, dclm, fineweb, gopher, gpt3"):
        load_recipe("missing/own.yaml")


def test_defaults_are_in_range():
    """What a step takes when it is only turned on passes the checks."""
    everything = {name: {} for name in get_type_hints(Recipe)} | {"duplicates": {"near": {}}}
    recipe = from_dict(everything)
    assert from_dict(to_dict(recipe)) == recipe
    for name, hint in get_type_hints(Recipe).items():
        assert isinstance(getattr(recipe, name), get_args(hint)[0])
