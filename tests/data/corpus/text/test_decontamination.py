"""GPT-3's decontamination beside a slow one in plain Python, which knows neither hashes nor arrays."""

import logging
import pickle
import random
import string
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.data.corpus.text.decontamination.cutting import cut, overlaps
from megagpt.data.corpus.text.decontamination.index import Index, read_index
from megagpt.data.corpus.text.decontamination.words import plain_words, word_hashes, word_spans
from megagpt.data.corpus.text.limits import Decontamination

GPT3 = Decontamination()
VOCABULARY = [f"{a}{b}" for a in "bcdfgklmnprst" for b in ("a", "e", "ile", "onder", "u")]


def tokens(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end), a character at a time."""
    found, start = [], None
    for place, character in enumerate(text + " "):
        if not character.isspace():
            start = place if start is None else start
            continue
        if start is not None:
            token = text[start:place].lower()
            word = "".join(
                one for one in token if one not in string.punctuation and unicodedata.category(one)[0] != "P"
            )
            if word:
                found.append((word, start, place))
        start = None
    return found


def grams(text: str, n: int) -> list[tuple[tuple[str, ...], int, int]]:
    found = tokens(text)
    runs = [found[place : place + n] for place in range(len(found) - n + 1)]
    return [(tuple(word for word, _, _ in run), run[0][1], run[-1][2]) for run in runs]


def slow(corpus: list[str], evaluation: list[str], limits: Decontamination) -> list[list[str] | None]:
    """What is left of every document: in which characters are marked one by one."""
    known = {gram for text in evaluation for gram, _, _ in grams(text, limits.ngram)}
    counts = Counter(gram for text in corpus for gram in {gram for gram, _, _ in grams(text, limits.ngram)} & known)
    results = []
    for text in corpus:
        cut_out = [False] * len(text)
        for gram, start, end in grams(text, limits.ngram):
            if gram in known and counts[gram] <= limits.max_documents:
                for place in range(max(0, start - limits.window), min(len(text), end + limits.window)):
                    cut_out[place] = True
        left, piece = [], ""
        for character, gone in zip(text, cut_out, strict=True):
            if gone and piece:
                left.append(piece)
            piece = "" if gone else piece + character
        left += [piece] if piece or not text else []
        if len(left) > limits.max_pieces:
            results.append(None)
        elif not any(cut_out):
            results.append([text])
        else:
            results.append([piece for piece in left if len(piece) >= limits.min_piece])
    return results


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words))


def disguised(rng: random.Random, text: str) -> str:
    """The same words with other case, punctuation and spaces."""
    words = []
    for word in text.split():
        word = word.upper() if rng.random() < 0.2 else word.capitalize() if rng.random() < 0.3 else word
        words.append(rng.choice(["", "“", "(", "'"]) + word + rng.choice(["", ",", ".", "”", ")", "...", " —", " -"]))
    return "".join(word + rng.choice([" ", " ", "\n", "  ", "\xa0", "\t"]) for word in words)


def planted(seed: int) -> tuple[list[str], list[str]]:
    """A corpus and an evaluation; some of its examples stand in few documents, one in many, in disguise."""
    rng = random.Random(seed)
    evaluation = [sentence(rng, words) for words in (20, *rng.choices(range(8, 40), k=11))]
    alone = sentence(rng, 15)
    corpus = []
    for number in range(60):
        parts = [sentence(rng, rng.randint(0, 120)) for _ in range(rng.randint(1, 14))]
        between = [
            disguised(rng, evaluation[0] if number % 3 == 0 else rng.choice(evaluation))
            if rng.random() < 0.4
            else sentence(rng, 5)
            for _ in parts
        ]
        corpus.append("\n\n".join(text for pair in zip(parts, between, strict=True) for text in pair))
    return [*corpus, "", " ", "short", alone], [*evaluation, alone]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "limits",
    [
        Decontamination(),
        Decontamination(ngram=8, window=30, min_piece=50, max_pieces=3, max_documents=2),
        Decontamination(window=0, min_piece=0),
    ],
    ids=["published", "small", "no window"],
)
def test_two_passes_are_those_of_plain_python(tmp_path, seed, limits):
    corpus, evaluation = planted(seed)
    index, _ = read_index([write(tmp_path / "set.txt", evaluation)], limits.ngram)
    counts = index.no_counts()
    for text in corpus:
        index.count(text, counts)
    expected = slow(corpus, evaluation, limits)
    assert [cut(text, index, counts, limits) for text in corpus] == expected
    if limits == GPT3:  # the planted cases are there: untouched, cut, gone and in too many pieces
        assert {len(left) for left in expected if left is not None} >= {0, 1, 2}
        assert counts.max() > limits.max_documents


def test_in_too_many_pieces():
    rng = random.Random(1)
    example, between = sentence(rng, 13), [sentence(rng, 150) for _ in range(12)]
    index, counts = index_of([example])
    for runs, fate in ((9, 10), (10, None)):
        text = f" {example} ".join(between[: runs + 1])
        left = cut(text, index, counts, GPT3)
        assert left is None if fate is None else len(left) == fate
    text = f" {example} ".join([*between[:10], ""])  # short pieces count, though they would be dropped
    assert cut(text, index, counts, Decontamination(window=0)) is None
    assert len(cut(text, index, counts, Decontamination(window=0, max_pieces=11))) == 10


def index_of(texts: list[str], length: int = 13) -> tuple[Index, np.ndarray]:
    """An index and counts that ignore nothing, made without files."""
    from megagpt.data.corpus.grams import run_hashes

    hashes = np.unique(np.concatenate([run_hashes(word_hashes(text), length) for text in texts]))
    index = Index(hashes, np.zeros(len(hashes), np.uint16), ["set"], length)
    return index, index.no_counts()


def test_a_book_is_cut_and_not_dropped():
    """GPT-3 lost its long documents to a bug; a single match takes 200 characters on each side and nothing else."""
    rng = random.Random(2)
    example = sentence(rng, 13)
    before, after = sentence(rng, 200_000), sentence(rng, 200_000)
    index, counts = index_of([example])
    text = f"{before} {example.upper()}! {after}"
    left = cut(text, index, counts, GPT3)
    assert left == [text[: len(before) + 1 - 200], text[len(before) + 1 + len(example) + 1 + 200 :]]


def test_janitor_cuts_the_same_where_the_two_agree(tmp_path):
    """lm-eval's janitor.py 0.4.13 on one match in 200 words: its second piece begins two characters later.

    Its end of a run is the last character and it goes on one after the end of the window. (It counts runs, not
    pieces, against its limit of 10, so that one passage of 23 words drops a document.)
    """
    rng = random.Random(3)
    before, example, after = sentence(rng, 100), sentence(rng, 13), sentence(rng, 100)
    index, _ = read_index([write(tmp_path / "set.txt", [example])])
    text = f"{before} {example} {after}"
    start, last = len(before) + 1, len(before) + len(example)
    janitor = [text[: start - 200], text[last + 200 + 1 :]]
    left = cut(text, index, index.no_counts(), GPT3)
    assert [left[0], left[1]] == [janitor[0], janitor[1]]


def test_counts_of_shards_add_up(tmp_path):
    corpus, evaluation = planted(5)
    index, _ = read_index([write(tmp_path / "set.txt", evaluation)])
    results = []
    for shards in (1, 2, 7):
        total = index.no_counts()
        for shard in range(shards):
            mine = index.no_counts()
            for text in corpus[shard::shards]:
                index.count(text, mine)
            total += mine
        results.append(total.tolist())
    assert results[0] == results[1] == results[2]
    known = {gram for text in evaluation for gram, _, _ in grams(text, 13)}
    slow_counts = Counter(gram for text in corpus for gram in {gram for gram, _, _ in grams(text, 13)} & known)
    assert Counter(results[0]) == Counter([*slow_counts.values(), *[0] * (len(known) - len(slow_counts))])


def test_phrases_of_many_documents_stay():
    rng = random.Random(4)
    phrase = sentence(rng, 13)
    index, counts = index_of([phrase])
    documents = [f"{sentence(rng, 100)} {phrase} {sentence(rng, 100)}" for _ in range(11)]
    for text in documents[:10]:
        index.count(f"{text} {phrase}", counts)  # twice in a document is once
    assert counts.tolist() == [10]
    assert len(cut(documents[0], index, counts, GPT3)) == 2
    index.count(documents[10], counts)
    assert cut(documents[0], index, counts, GPT3) == [documents[0]]


def test_overlaps_say_what_is_shared_with_which_file(tmp_path):
    rng = random.Random(6)
    first, second = sentence(rng, 13), sentence(rng, 13)
    files = [write(tmp_path / "a.txt", [first]), write(tmp_path / "b.txt", [second, first])]
    index, short = read_index(files)
    text = f"Here: {second}. And {first}; that was it."
    found = overlaps(text, index, index.no_counts())
    assert [(text[one.start : one.end], one.name) for one in found] == [(f"{second}.", "b.txt"), (f"{first};", "a.txt")]
    assert short == 0


def test_short_records_are_counted_and_named(tmp_path, caplog):
    path = write(tmp_path / "set.txt", ["too short", "", sentence(random.Random(7), 13), "one two three"])
    with caplog.at_level(logging.WARNING):
        index, short = read_index([path])
    assert short == 2
    assert len(index.hashes) == 1
    assert "2 of 3 records have fewer than 13 words" in caplog.text


def test_an_index_is_saved_loaded_and_sent(tmp_path):
    corpus, evaluation = planted(8)
    index, _ = read_index([write(tmp_path / "set.txt", evaluation)])
    index.save(tmp_path / "index.npz")
    for other in (Index.load(tmp_path / "index.npz"), pickle.loads(pickle.dumps(index))):
        counts, others = index.no_counts(), other.no_counts()
        for text in corpus:
            assert index.count(text, counts) == other.count(text, others)
        assert counts.tolist() == others.tolist()
        assert counts.any()
        assert (other.names, other.length) == (["set.txt"], 13)
    with pytest.raises(ValueError, match="counts of an index"):
        cut("text", index, np.zeros(1, np.uint32), GPT3)


def test_counts_that_match_nothing():
    index, counts = index_of([""])
    assert not index.count(sentence(random.Random(0), 50), counts)
    assert cut("any text", index, counts, GPT3) == ["any text"]


ALPHABET = "aB1 \n\t\x1c\x85\xa0\u3000.,'-—“”’·・你好かなไทİßΣé_$€\u200b\u0301"


@given(st.text(st.sampled_from(ALPHABET), max_size=60) | st.text(max_size=40))
def test_words_with_places_are_the_same_words(text):
    spans = word_spans(text)
    words = plain_words(text)
    assert len(words) == len(spans.words) == len(word_hashes(text))
    if "Σ" not in text:  # whose lower case depends on its neighbours
        assert words == spans.words
    assert all(not set(word.decode("utf-8", "surrogatepass")) & set(string.punctuation) for word in words)
    for start, end in zip(spans.starts, spans.ends, strict=True):
        assert not any(character.isspace() for character in text[start:end])


@given(st.text(st.sampled_from("aBc1 \n\t\x1c\x85\xa0.,'-—“”’İßé_$€"), max_size=80))
def test_words_are_those_of_plain_python(text):
    expected = tokens(text)
    assert [word.decode() for word in plain_words(text)] == [word for word, _, _ in expected]
    spans = word_spans(text)
    assert list(zip(spans.starts, spans.ends, strict=True)) == [(start, end) for _, start, end in expected]


def test_scripts_without_spaces_have_words_of_a_character():
    words = plain_words("GPT说：“你好”。かな ไทย 한국어 韓國")
    assert b" ".join(words).decode() == "gpt 说 你 好 か な ไ ท ย 한국어 韓 國"
