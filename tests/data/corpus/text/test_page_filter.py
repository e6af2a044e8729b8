"""Pages go through the steps of a recipe in order; what becomes of each is counted."""

from collections import Counter

import pytest
from text_peers import junk, real_texts

from megagpt.data.corpus.tally import Tally
from megagpt.data.corpus.text.page import Page
from megagpt.data.corpus.text.page_filter import Document, PageFilter
from megagpt.data.corpus.text.recipe import Recipe, from_dict, load_recipe
from megagpt.errors import ConfigError

GOOD = """The river runs through the old town and is so cold in spring that nobody dares to swim.
Bakers open their doors at five, long before the first bus leaves for the coast.
In the market you can buy cheese from three valleys, and honey that tastes of thyme.
Sailors who have seen half the world say that its harbour is the safest they know.
When the bells ring at noon, schools close for two hours and children walk home with their friends.
My grandmother used to tell us that the bridge was built by monks, which no book confirms.
Since the railway came, many families have moved away to look for work in larger cities."""


class Scorer:
    """Scores by the share of the words that are `good`."""

    def score(self, analysis) -> float:
        return analysis.words.count("good") / len(analysis.words)


def run(recipe: Recipe, pages: list[Page], scorer=None) -> tuple[list[Document | None], Tally, Counter]:
    tally, seconds = Tally(), Counter()
    with PageFilter(recipe, "trafilatura", tally, seconds, scorer) as keep:
        return [keep(page) for page in pages], tally, seconds


def page(text: str, name: str = "a#1", **fields) -> Page:
    return Page(text, name, len(text.encode()), **fields)


def only(**steps) -> Recipe:
    return from_dict(steps)


def test_a_page_that_stays():
    recipe = load_recipe("fineweb", ["urls={}"])
    (document,), tally, seconds = run(recipe, [page(GOOD, url="https://town.org/", metadata={"title": "Town"})])
    assert document == Document(GOOD, "a#1", "https://town.org/", "en", None, len(GOOD), {"title": "Town"})
    assert not tally.dropped and not tally.redactions
    steps = ["urls", "languages", "c4", "gopher_quality", "gopher_repetition", "fineweb", "pii"]
    assert list(seconds) == steps and all(value >= 0 for value in seconds.values())


def test_no_step_at_all():
    texts = ["x", "  \n", "", "{"]
    documents, tally, seconds = run(Recipe(), [page(text) for text in texts])
    assert [document and document.text for document in documents] == ["x", None, None, "{"]
    assert documents[0] == Document("x", "a#1", None, None, None, 1, {})
    assert tally.dropped["empty"].files == 2 and not seconds


@pytest.mark.parametrize(
    ("steps", "text", "rule"),
    [
        ({"urls": {}}, GOOD, "urls: strict word"),
        ({"languages": {}}, "Der Fluss fließt durch die alte Stadt. " * 5, "languages: other language"),
        ({"lines": {}}, "SHOUTING ALL THE TIME\n" + GOOD[:50], "lines: words removed"),
        ({"c4": {}}, GOOD[:50], "c4: few sentences"),
        ({"gopher_quality": {}}, "word " * 49, "gopher_quality: few words"),
        ({"gopher_repetition": {}}, GOOD + "\n\n" + GOOD, "gopher_repetition: duplicate paragraphs"),
        ({"fineweb": {}}, "no end\n" * 10, "fineweb: few lines that end a sentence"),
        ({"pii": {"max_spans": 1}}, "From 8.8.8.8 to 8.8.4.4 it goes.", "pii: personal data"),
    ],
)
def test_every_step_drops_and_the_first_one_counts(steps, text, rule):
    bad = page(text, url="http://porn.example/")
    (document,), tally, seconds = run(only(**steps), [bad])
    assert document is None and list(tally.dropped) == [rule] and list(seconds) == list(steps)
    count = tally.dropped[rule]
    assert (count.files, count.bytes, count.samples[0][1]) == (1, bad.bytes, "a#1") and count.samples[0][2]
    everything = {name: {} for name in (*steps, "urls", "languages", "c4", "fineweb", "pii")} | steps
    _, tally, _ = run(only(**everything), [bad])
    assert list(tally.dropped) == ["urls: strict word"]


def test_edits_are_seen_by_the_steps_behind_them_and_counted():
    """49 words stay when the heading goes, and the citation is no longer there for FineWeb."""
    text = (
        "A HEADING\n"
        + "word of the text. " * 12
        + "and[1] that.\nmenu item\n"
        + "Another line is here, with more words.\n"
    )
    recipe = only(lines={"max_removed": None}, c4={"min_sentences": 2}, pii={})
    (document,), tally, _ = run(recipe, [page(text + "Write to jane@" + "corp.com now.")])
    assert document.text == (
        "word of the text. " * 12 + "and that.\nAnother line is here, with more words.\nWrite to <EMAIL> now."
    )
    assert tally.replacements == {
        "lines: uppercase": 1,
        "c4: no terminal mark": 1,
        "c4: citation": 1,
        "e-mail address": 1,
    }
    strict = only(lines={"max_removed": None}, gopher_quality={"min_words": 70})
    assert run(strict, [page(text)])[1].dropped.keys() == {"gopher_quality: few words"}


def test_what_a_dropped_page_would_have_lost_is_not_counted():
    _, tally, _ = run(only(c4={"min_sentences": 2}), [page("One line here.\nmenu")])
    assert tally.dropped.keys() == {"c4: few sentences"} and not tally.replacements


def test_bad_words(tmp_path):
    (tmp_path / "bad").write_text("sailors\n")
    recipe = only(c4={"bad_words": str(tmp_path / "bad")})
    assert run(recipe, [page(GOOD)])[1].dropped.keys() == {"c4: bad words"}
    assert run(recipe, [page(GOOD.replace("Sailors", "People"))])[0][0]


def test_pages_without_an_address_pass_the_rules_about_them():
    assert run(only(urls={}), [page(GOOD)])[0][0]


def test_quality_by_threshold_and_share():
    texts = [page(f"{'good ' * count}{'bad ' * (10 - count)}", f"#{count}") for count in range(11)]
    documents, tally, seconds = run(only(quality={"rule": "threshold", "threshold": 0.3}), texts, Scorer())
    assert [document.score for document in documents if document] == [count / 10 for count in range(3, 11)]
    assert tally.dropped["quality"].files == 3 and "score 0.2000" in str(tally.dropped["quality"].samples)
    assert "quality" in seconds
    documents, _, _ = run(only(quality={"rule": "share"}), texts, Scorer())
    assert all(documents)  # which are the best is only known when all have scores


def test_quality_by_chance_is_the_same_each_time():
    """P(keep) = (2 - s)^-9: all of 1.0, 42% of 0.9, 13% of 0.75 (0.7: 9%), hardly any of 0.5."""
    pytest.importorskip("megagpt.data.corpus.text.quality.keep")
    for count, share in ((10, 1.0), (9, 1.1**-9), (7, 1.3**-9), (5, 1.5**-9)):
        texts = [page(f"{number} " * 10 + "good " * 10 * count + "bad " * 10 * (9 - count)) for number in range(2000)]
        if count == 10:
            texts = [page("good " * number) for number in range(1, 200)]
        kept = [document is not None for document in run(only(quality={}), texts, Scorer())[0]]
        assert sum(kept) / len(kept) == pytest.approx(share, abs=0.04)
        assert kept == [document is not None for document in run(only(quality={}), texts, Scorer())[0]]


def test_a_recipe_that_needs_a_model_says_so():
    with pytest.raises(ConfigError, match=r"quality\.model=FOLDER, or leave the step out with quality=null"):
        run(load_recipe("gpt3"), [])


def test_missing_files_are_named_before_any_page(tmp_path):
    for steps, key in (
        ({"urls": {"domains": "nowhere"}}, r"urls\.domains: nowhere"),
        ({"c4": {"bad_words": "nowhere"}}, r"c4\.bad_words: nowhere"),
        ({"languages": {"model": "nowhere"}}, r"languages\.model: nowhere"),
    ):
        with pytest.raises(ConfigError, match=key):
            run(only(**steps), [])


HTML = "<html><head><title>Town</title></head><body><nav>Home</nav><article>{}</article></body></html>"


def test_html_is_extracted_after_the_rules_about_addresses():
    pytest.importorskip("megagpt.data.corpus.text.inputs.extract")
    html = HTML.format("".join(f"<p>{line}</p>" for line in GOOD.splitlines())).encode()
    pages = [
        page("", "a#1", html=html, url="http://town.org/"),
        page("", "a#2", html=html, url="http://porn.example/"),
        page("", "a#3", html=b"<html></html>"),
    ]
    documents, tally, seconds = run(only(urls={}, c4={}), pages)
    assert "Bakers" in documents[0].text and "<p>" not in documents[0].text and "Home" not in documents[0].text
    assert documents[1:] == [None, None]
    assert tally.dropped.keys() == {"urls: strict word", "extraction"}
    assert seconds["extraction"] > 0


def test_the_order_of_pages_does_not_matter():
    everything = {name: {} for name in ("lines", "c4", "gopher_quality", "gopher_repetition", "fineweb", "pii")}
    recipe = only(**everything, languages={"min_score": 0.0, "keep": ["en", "un"]})
    pages = [page(text, f"#{number}") for number, text in enumerate([*junk(300), GOOD])]
    documents, tally, _ = run(recipe, pages)
    backwards, other, _ = run(recipe, pages[::-1])
    assert documents == backwards[::-1] and tally.to_json() == other.to_json()
    assert sum(count.files for count in tally.dropped.values()) + sum(map(bool, documents)) == len(pages)


@pytest.mark.parametrize("name", ["c4", "gopher", "fineweb", "dclm"])
def test_recipes_keep_prose_and_drop_junk(name, data_dir):
    recipe = load_recipe(name, ["urls=null", "quality=null"])
    speeches = [page(text) for text in list(real_texts(data_dir))[330:380]]  # inaugural addresses
    assert sum(map(bool, run(recipe, speeches)[0])) >= 40
    rubbish = [page(text) for text in junk(300)]
    assert sum(map(bool, run(recipe, rubbish)[0])) < 30
