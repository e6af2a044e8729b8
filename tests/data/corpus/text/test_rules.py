"""C4's, Gopher's and FineWeb's rules decide as datatrove's blocks do, given the same words, and name the same rule."""

import dataclasses
import itertools
import re
from collections import Counter

import pytest
from datatrove.pipeline.filters import (
    C4BadWordsFilter,
    C4ParagraphFilter,
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from text_peers import WORDS, junk, real_texts, verdict
from timing import cpu_seconds

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.limits import C4, FineWeb, GopherQuality, GopherRepetition
from megagpt.data.corpus.text.rules.c4 import c4, load_bad_words
from megagpt.data.corpus.text.rules.fineweb import fineweb
from megagpt.data.corpus.text.rules.gopher import quality, repetition
from megagpt.errors import ConfigError

NAMES = {
    "gopher_short_doc": "few words",
    "gopher_long_doc": "many words",
    "gopher_below_avg_threshold": "short words",
    "gopher_above_avg_threshold": "long words",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet lines",
    "gopher_too_many_end_ellipsis": "lines that end with an ellipsis",
    "gopher_below_alpha_threshold": "few words with letters",
    "gopher_enough_stop_words": "few stop words",
    "dup_para_frac": "duplicate paragraphs",
    "dup_para_char_frac": "characters in duplicate paragraphs",
    "dup_line_frac": "duplicate lines",
    "dup_line_char_frac": "characters in duplicate lines",
    **{f"top_{length}_gram": f"top {length}-gram" for length in (2, 3, 4)},
    **{f"duplicated_{length}_n_grams": f"duplicate {length}-grams" for length in range(5, 11)},
    "line_punct_ratio": "few lines that end a sentence",
    "short_line_ratio": "short lines",
    "char_dup_ratio": "characters in duplicate lines",
    "list_ratio": "line breaks",
    "lorem_ipsum": "lorem ipsum",
    "curly_bracket": "curly bracket",
    "too_few_sentences": "few sentences",
    "< 3 paragraphs": "short paragraphs",
    "empty": "empty",
}


def agree(block, rule, texts, metadata=None) -> Counter:
    """How often each rule dropped a text; every verdict and its rule is that of datatrove's block."""
    fired = Counter()
    for text in texts:
        expected, _ = verdict(block, text)
        found = rule(Analysis(text))
        assert (found and found.rule) == (expected and NAMES[expected]), repr(text[:2000])
        fired[expected] += 1
    return fired


# Junk passes no rule that stands before many others, so some blocks are also compared with few of their rules.
LOOSE = GopherQuality(min_words=5, min_mean_word_length=1, max_mean_word_length=50, min_alphabetic_words=0.3)
LOOSE_BLOCK = {
    "min_doc_words": 5,
    "min_avg_word_length": 1,
    "max_avg_word_length": 50,
    "max_non_alpha_words_ratio": 0.3,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # datatrove takes the mean of no words
def test_gopher_quality_of_junk():
    fired = agree(GopherQualityFilter(language=WORDS), lambda text: quality(text, GopherQuality()), junk(1500))
    fired += agree(GopherQualityFilter(language=WORDS, **LOOSE_BLOCK), lambda text: quality(text, LOOSE), junk(1500, 1))
    missing = {name for name in NAMES if name.startswith("gopher")} - fired.keys()
    assert missing == {"gopher_long_doc"}
    block = GopherQualityFilter(language=WORDS, max_doc_words=20, min_doc_words=None)
    limits = GopherQuality(max_words=20, min_words=None)
    assert agree(block, lambda text: quality(text, limits), (text for text in junk(300) if text.split()))[
        "gopher_long_doc"
    ]


def test_gopher_repetition_of_junk():
    fired = agree(GopherRepetitionFilter(language=WORDS), lambda text: repetition(text, GopherRepetition()), junk(1500))
    assert fired["top_2_gram"] and fired["duplicated_5_n_grams"] and fired[None]
    assert repetition(Analysis(""), GopherRepetition()).rule == "empty"


@pytest.mark.parametrize("length", [2, 3, 4])
def test_top_runs(length):
    """With the shares of the runs alone, and so low that they decide."""
    off = dict.fromkeys(field.name for field in dataclasses.fields(GopherRepetition))
    for share in (0.02, 0.05, 0.1, 0.5):
        block = GopherRepetitionFilter(1, 1, 1, 1, ((length, share),), (), language=WORDS)
        limits = GopherRepetition(**off | {f"top_{length}grams": share})
        assert agree(block, lambda text: repetition(text, limits), junk(400, length))[f"top_{length}_gram"]  # noqa: B023


@pytest.mark.parametrize("length", range(5, 11))
def test_duplicate_runs(length):
    off = dict.fromkeys(field.name for field in dataclasses.fields(GopherRepetition))
    for share in (0.001, 0.1, 0.3, 0.6):
        block = GopherRepetitionFilter(1, 1, 1, 1, (), ((length, share),), language=WORDS)
        limits = GopherRepetition(**off | {f"duplicate_{length}grams": share})
        fired = agree(block, lambda text: repetition(text, limits), junk(400, length))  # noqa: B023
        assert fired[f"duplicated_{length}_n_grams"] and fired[None]


def test_fineweb_of_junk():
    fired = agree(FineWebQualityFilter(language=WORDS), lambda text: fineweb(text, FineWeb()), junk(1500))
    assert {"line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio", "empty", None} <= fired.keys()


C4_SETTINGS = [
    ({}, {}),
    ({"filter_no_terminal_punct": False}, {"terminal_marks": None}),
    ({"min_num_sentences": 1, "min_words_per_line": 1}, {"min_sentences": 1, "min_words": 1}),
    (
        {"min_num_sentences": -1, "min_words_per_line": -1, "filter_no_terminal_punct": False, "max_word_length": -1},
        {"min_sentences": None, "min_words": None, "terminal_marks": None, "max_word_length": None},
    ),
    (
        {
            "filter_lorem_ipsum": False,
            "filter_curly_bracket": False,
            "filter_javascript": False,
            "min_num_sentences": 2,
        },
        {"lorem_ipsum": False, "curly_bracket": False, "javascript": False, "min_sentences": 2},
    ),
    ({"filter_policy": False, "remove_citations": False}, {"policy": False, "citations": False}),
    ({"max_word_length": 8, "min_num_sentences": 1}, {"max_word_length": 8, "min_sentences": 1}),
]
STATISTICS = {
    "too_long_word": "long word",
    "no_terminal_punc": "no terminal mark",
    "too_few_words": "few words",
    "javascript": "javascript",
    "policy": "policy",
}


def agree_on_edits(block: C4QualityFilter, limits: C4, texts) -> Counter:
    fired = Counter()
    for text in texts:
        block.stats.stats.clear()
        expected, left = verdict(block, text)
        edit = c4(Analysis(text), limits)
        assert (edit.drop and edit.drop.rule) == (expected and NAMES[expected]), repr(text)
        counts = {name: block.stats.stats[f"line-filter-{key}"].total for key, name in STATISTICS.items()}
        assert {name: edit.counts[name] for name in counts} == counts, repr(text)
        assert expected or edit.text == left
        fired[expected] += 1
        fired.update(edit.counts.keys())
    return fired


@pytest.mark.parametrize(("settings", "limits"), C4_SETTINGS)
def test_c4_of_junk(settings, limits):
    fired = agree_on_edits(C4QualityFilter(language=WORDS, **settings), C4(**limits), junk(500))
    assert fired[None]
    if not settings:
        assert {"lorem_ipsum", "curly_bracket", "too_few_sentences", "citation", *STATISTICS.values()} <= fired.keys()


def test_paragraphs_of_mc4():
    nothing = C4(None, None, None, False, False, False, False, False, None, None, 3, 20)
    block = C4ParagraphFilter()
    block.min_paragraph_len = 20
    fired = Counter()
    for text in junk(1000):
        text = "\n".join(line.strip() for line in text.splitlines()).strip()  # as C4's lines are
        expected, _ = verdict(block, text)
        found = c4(Analysis(text), nothing).drop
        assert (found and found.rule) == (expected and NAMES[expected])
        fired[expected] += 1
    assert len(fired) == 2


def test_bad_words(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text("Bad\nvery bad thing\nx-y\nC++\nbad\n\n気\n")
    block = C4BadWordsFilter()
    words = {line.strip().lower() for line in path.read_text().splitlines()} - {""}
    bad_words = load_bad_words(str(path))

    plain = "|".join(map(re.escape, words))
    block._badwords_regex = {"en": re.compile(rf"(?:\W|^)({plain})(?:\W|$)"), "ja": re.compile(plain)}
    texts = [
        "bad",
        "badly",
        "a bad, day",
        "not_bad",
        "BAD",
        "a very bad\nthing",
        "VERY BAD THING!",
        "ax-y",
        "(x-y)",
        "c++",
        "ac++",
    ]
    texts += ["c++ x", "気", "元気", "元 気 x", "", "bad\n", *junk(200)]
    for language in ("en", "ja"):
        for text in texts:
            expected, _ = verdict(block, text, language=language)
            found = bad_words(text, language)
            assert (found is None) == (expected is None), (text, language)
    assert bad_words("a bad day", "en") == ("bad words", "'bad'")
    with pytest.raises(ConfigError, match=r"c4\.bad_words: .*nowhere"):
        load_bad_words(str(tmp_path / "nowhere"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_thousands_of_junk_texts():
    """All blocks with their defaults on other texts than those above."""
    texts = list(junk(6000, 99))
    agree(GopherQualityFilter(language=WORDS), lambda text: quality(text, GopherQuality()), texts)
    agree(GopherQualityFilter(language=WORDS, **LOOSE_BLOCK), lambda text: quality(text, LOOSE), texts)
    agree(GopherRepetitionFilter(language=WORDS), lambda text: repetition(text, GopherRepetition()), texts)
    agree(FineWebQualityFilter(language=WORDS), lambda text: fineweb(text, FineWeb()), texts)
    agree_on_edits(C4QualityFilter(language=WORDS), C4(), texts)


@pytest.mark.slow
def test_real_texts(data_dir):
    """All blocks on all real texts, and on pages that were made of parts of them."""
    texts = list(real_texts(data_dir))
    texts += [
        first[:1500] + "\n\n" + second[:1500] + "\n\n" + first[:1000] for first, second in itertools.pairwise(texts)
    ]
    assert len(texts) > 1500
    assert len(agree(GopherQualityFilter(language=WORDS), lambda text: quality(text, GopherQuality()), texts)) > 4
    fired = agree(GopherRepetitionFilter(language=WORDS), lambda text: repetition(text, GopherRepetition()), texts)
    assert len(fired) > 4
    assert len(agree(FineWebQualityFilter(language=WORDS), lambda text: fineweb(text, FineWeb()), texts)) > 3
    for settings, limits in C4_SETTINGS:
        agree_on_edits(C4QualityFilter(language=WORDS, **settings), C4(**limits), texts)


@pytest.mark.parametrize("text", ["a " * 200_000, "ab " * 100_000 + "x" * 100_000, "{" * 300_000, ". " * 200_000])
def test_no_text_takes_long(text):
    def rules() -> None:
        analysis = Analysis(text)
        c4(analysis, C4())
        quality(analysis, GopherQuality(min_words=None, max_words=None))
        repetition(analysis, GopherRepetition(top_2grams=None, top_3grams=None, top_4grams=None))
        fineweb(analysis, FineWeb())

    assert cpu_seconds(rules) < 3
