"""Fill-in-the-middle: the parts are the document in every order, samples keep their length, results are repeatable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data.code_tokens import FIM_TOKENS, grow_for_code
from megagpt.data.fim import FillInTheMiddle, fim_prompt, units_within
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import ConfigError, DataError

PLAIN = train_tokenizer(["def f(x):\n    return x + 1\n", "the cat sat on the mat; naïve 中文\n"] * 5, 280)
TOKENIZER = grow_for_code(PLAIN)
END = TOKENIZER.end_of_text_id
PREFIX, MIDDLE, SUFFIX, PAD = (TOKENIZER.special_ids[name] for name in FIM_TOKENS)
TEXTS = st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6)


def sample_of(texts: list[str], tokenizer: Tokenizer = TOKENIZER) -> np.ndarray:
    return np.array([token for text in texts for token in [*tokenizer.encode(text), END]])


def split(tokens: list[int], *separators: int) -> list[list[int]]:
    """What stands between the separators, each of which occurs once, in this order."""
    places = [tokens.index(separator) for separator in separators]
    assert places == sorted(places)
    assert all(tokens.count(separator) == 1 for separator in separators)
    return [tokens[i + 1 : j] for i, j in zip(places, [*places[1:], len(tokens)], strict=True)]


def restore(tokens: list[int]) -> str:
    """The text of one document, rearranged or not, without its end-of-text; written from the definition."""
    decode = TOKENIZER.decode
    if tokens[:1] != [PREFIX]:
        assert not {PREFIX, MIDDLE, SUFFIX} & set(tokens)
        return decode(tokens)
    if tokens[1] == SUFFIX:
        nothing, suffix, prefix_and_middle = split(tokens, PREFIX, SUFFIX, MIDDLE)
        assert not nothing
        return decode(prefix_and_middle) + decode(suffix)
    prefix, suffix, middle = split(tokens, PREFIX, SUFFIX, MIDDLE)
    return decode(prefix) + decode(middle) + decode(suffix)


def documents(tokens: np.ndarray) -> list[list[int]]:
    """The documents of a sample without their end-of-text; the last one may lack it, and is empty if there is none."""
    ends = np.flatnonzero(tokens == END)
    return [part[part != END].tolist() for part in np.split(tokens[tokens != PAD], ends + 1)]


@given(text=st.text(), cuts=st.tuples(st.integers(0, 99), st.integers(0, 99)), spm=st.booleans())
@settings(max_examples=300, deadline=None)
def test_parts_put_together_are_the_document(text, cuts, spm):
    first, last = sorted(min(cut, len(text)) for cut in cuts)
    tokens = FillInTheMiddle(TOKENIZER).rearrange(text, first, last, spm)
    assert tokens.pop() == END
    assert restore(tokens) == text
    assert (tokens[1] == SUFFIX) == (spm or not first)
    prefix, middle, suffix = (TOKENIZER.encode(part) for part in (text[:first], text[first:last], text[last:]))
    order = [PREFIX, SUFFIX, *suffix, MIDDLE, *prefix] if spm else [PREFIX, *prefix, SUFFIX, *suffix, MIDDLE]
    assert tokens == [*order, *middle]


@given(texts=TEXTS, index=st.integers(0, 10**9), spm_rate=st.sampled_from([0, 0.5, 1]))
@settings(max_examples=300, deadline=None)
def test_documents_of_a_sample_stay_whole_but_for_the_last(texts, index, spm_rate):
    filler = "x" * 300
    new, mask = FillInTheMiddle(TOKENIZER, 1, spm_rate, seed=3).sample(sample_of([*texts, filler]), index)
    *whole, last, rest = documents(new)
    assert [restore(document) for document in whole] == texts
    assert filler.startswith(restore(last))
    assert all(document[0] == PREFIX for document in (*whole, last))
    assert not rest
    assert (mask == (new[1:] != PAD)).all()


@given(texts=TEXTS, index=st.integers(0, 10**9), rate=st.floats(0, 1), cut=st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_any_sample_keeps_its_length_and_what_is_rearranged_has_an_end(texts, index, rate, cut):
    tokens = sample_of(texts)
    tokens = tokens[: max(1, len(tokens) - cut)]  # the last document may be cut, even inside a character
    new, mask = FillInTheMiddle(TOKENIZER, rate).sample(tokens, index)
    assert (new.shape, mask.shape) == (tokens.shape, (len(tokens) - 1,))
    assert (new.dtype, mask.dtype) == (np.int64, np.float32)
    assert (mask == (new[1:] != PAD)).all()
    *whole, rest = documents(new)
    assert all(text.startswith(restore(document)) for text, document in zip(texts, whole, strict=False))
    assert not {PREFIX, MIDDLE, SUFFIX} & set(rest)


@given(text=st.text(st.sampled_from("ab 中🎉\n"), min_size=30), index=st.integers(0, 10**9), start=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_a_window_inside_a_document_is_rearranged_up_to_its_end(text, index, start):
    window = np.array(TOKENIZER.encode(text))[start:-2]
    new, mask = FillInTheMiddle(TOKENIZER, 1).sample(window, index)
    whole, rest = documents(new)
    restored, original = restore(whole), TOKENIZER.decode_bytes(window).decode(errors="ignore")
    assert original.startswith(restored)
    assert not rest
    assert mask.sum() == len(whole)  # all but the first token, and end-of-text
    lost = TOKENIZER.encode(original[len(restored) :])
    assert len(lost) <= 24  # 4 tokens are added, and cut words and runs take some more


def test_what_gets_shorter_is_padded_and_the_end_is_trained():
    text = "    return x + 1\n" * 4
    letters = [
        index for character in text.encode() for index in range(256) if TOKENIZER.decode_bytes([index])[0] == character
    ]
    tokens = np.array([*letters, END])  # a corpus never spells text like this, but no tokens save more
    new, mask = FillInTheMiddle(TOKENIZER, 1).sample(tokens, 5)
    length = int((new != PAD).sum())
    assert length < len(tokens)
    assert new[length - 1] == END
    assert (new[length:] == PAD).all()
    assert mask.tolist() == [1] * (length - 1) + [0] * (len(tokens) - length)
    assert restore(new[: length - 1].tolist()) == text


def test_samples_depend_on_seed_and_index_alone():
    tokens = sample_of(["def f(x):\n    return x + 1\n"] * 9)
    fim = FillInTheMiddle(TOKENIZER, seed=1)
    alone = {index: fim.sample(tokens, index)[0].tolist() for index in range(40)}
    again = FillInTheMiddle(TOKENIZER, seed=1)
    assert alone == {index: again.sample(tokens, index)[0].tolist() for index in reversed(range(40))}
    assert len({tuple(new) for new in alone.values()}) == 40
    assert FillInTheMiddle(TOKENIZER, seed=2).sample(tokens, 0)[0].tolist() != alone[0]
    assert tokens.tolist() == sample_of(["def f(x):\n    return x + 1\n"] * 9).tolist()


def test_rates_and_spans():
    text = "abcdefghij"
    tokens, fim = sample_of([text, "x" * 40]), FillInTheMiddle(TOKENIZER, 0.5, 0.25)
    first = [documents(fim.sample(tokens, index)[0])[0] for index in range(4000)]
    rearranged = [document for document in first if document[0] == PREFIX]
    assert len(rearranged) / 4000 == pytest.approx(0.5, abs=0.04)
    middles = [
        TOKENIZER.decode(document[document.index(MIDDLE) + 1 :]) for document in rearranged if document[1] != SUFFIX
    ]
    # A PSM with an empty prefix looks like an SPM here: 21 of the 121 equally likely pairs of cuts hold a 0.
    assert len(middles) / len(rearranged) == pytest.approx(0.75 * 100 / 121, abs=0.04)
    assert {len(middle) for middle in middles} == set(range(10))
    assert all(middle in text for middle in middles)


@given(text=st.text(st.sampled_from("ab \t\n(中"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_lines_keep_the_tokens_of_the_whole_text(text):
    places = units_within(text)
    lines = text.split("\n")
    fit = [line != "" and line == line.rstrip() for line in lines]
    wanted = [f"\n{lines[n]}" for n in range(1, len(lines) - 1) if fit[n - 1] and fit[n]]
    assert [text[first:last] for first, last in places] == wanted
    for first, last in places:
        parts = [TOKENIZER.encode(part) for part in (text[:first], text[first:last], text[last:])]
        assert [token for part in parts for token in part] == TOKENIZER.encode(text)


def test_a_share_of_the_middles_are_single_lines():
    text = "def f(x):\n    y = x\n\n    return (\n        y)\nf(1)"
    lines = ["\n    y = x", "\n        y)"]  # not the first and the last, and none that is blank or after a blank one
    assert [text[slice(*place)] for place in units_within(text)] == lines
    tokens, fim = sample_of([text, "x" * 40]), FillInTheMiddle(TOKENIZER, 0.5, 0, unit_rate=0.75)
    first = [documents(fim.sample(tokens, index)[0])[0] for index in range(2000)]
    rearranged = [document for document in first if document[0] == PREFIX]
    assert len(rearranged) / 2000 == pytest.approx(0.5, abs=0.05)
    middles = [TOKENIZER.decode(document[document.index(MIDDLE) + 1 :]) for document in rearranged]
    for line in lines:
        assert middles.count(line) / len(middles) == pytest.approx(0.75 / 2, abs=0.05)
    assert all(restore(document) == text for document in rearranged)
    always = FillInTheMiddle(TOKENIZER, 1, 0, unit_rate=1)
    one_line = sample_of(["to be or not", "x" * 40])  # without a line to take it is cut anywhere
    assert len({tuple(always.sample(one_line, index)[0]) for index in range(50)}) > 20


def test_long_documents_are_cut_into_pieces():
    text, spaces = " ".join(f"w{number}" for number in range(200)), np.array(TOKENIZER.encode(" x") * 200)
    window = np.array(TOKENIZER.encode(text))[:400]
    fim = FillInTheMiddle(TOKENIZER, 1, seed=3, piece_tokens=40)
    seen = set()
    for index in range(20):
        new, mask = fim.sample(window, index)
        assert np.array_equal(fim.sample(window, index)[0], new)
        assert new.shape == window.shape
        assert (mask == (new[1:] != PAD)).all()
        *whole, rest = documents(new)
        assert len(whole) >= 400 // 50
        assert text.startswith("".join(restore(document) for document in whole))
        assert not rest or rest[0] not in (MIDDLE, SUFFIX)
        seen.add(tuple(np.flatnonzero(new == END)))
    assert len(seen) == 20  # where pieces end depends on the sample
    lengths = [len(restore(d)) // 2 for n in range(200) for d in documents(fim.sample(spaces, n)[0])[:-2]]
    per_word = len(spaces) / 200  # tokens of " x"
    assert (min(lengths) * per_word, max(lengths) * per_word) == pytest.approx((10, 40), abs=2)
    two = sample_of(["x" * 9, "y" * 500])  # the end of a document always ends a piece
    assert restore(documents(fim.sample(two, 0)[0])[0]) == "x" * 9


def test_rate_0_changes_nothing_and_rate_1_everything():
    tokens = sample_of(["one", "two", "three"])
    assert FillInTheMiddle(TOKENIZER, 0).sample(tokens, 7)[0].tolist() == tokens.tolist()
    long = sample_of(["one"] * 3 + ["x" * 60])
    new, _ = FillInTheMiddle(TOKENIZER, 1).sample(long, 7)
    assert [document[0] for document in documents(new)[:3]] == [PREFIX] * 3


def test_what_is_no_text_stays():
    fim = FillInTheMiddle(TOKENIZER, 1)
    for tokens in ([END], [END, END], TOKENIZER.encode("é")[:1], [*TOKENIZER.encode("a" * 9), PAD, END]):
        assert fim.sample(np.array(tokens), 0)[0].tolist() == list(tokens)


def test_prompt_is_the_front_of_what_is_trained_on():
    prefix, suffix = "def f(x):\n    return", " + 1\n"
    prompt = fim_prompt(TOKENIZER, prefix, suffix)
    text = f"{prefix} x{suffix}"
    trained = FillInTheMiddle(TOKENIZER).rearrange(text, len(prefix), len(text) - len(suffix), True)
    assert trained == [*prompt, *TOKENIZER.encode(" x"), END]
    assert fim_prompt(TOKENIZER, "", "") == [PREFIX, SUFFIX, MIDDLE]
    psm = fim_prompt(TOKENIZER, prefix, suffix, spm=False)
    assert psm == [PREFIX, *TOKENIZER.encode(prefix), SUFFIX, *TOKENIZER.encode(suffix), MIDDLE]


def test_what_is_wrong_is_said():
    with pytest.raises(DataError, match=r"<fim_prefix>.*--extend OLD --output NEW"):
        fim_prompt(PLAIN, "a", "b")
    with pytest.raises(DataError, match="--extend"):
        FillInTheMiddle(PLAIN)
    for rates in ((1.5, 0.5), (0.5, -1), (float("nan"), 0)):
        with pytest.raises(ConfigError, match=r"in 0\.\.1"):
            FillInTheMiddle(TOKENIZER, *rates)
    with pytest.raises(ConfigError, match="unit_rate"):
        FillInTheMiddle(TOKENIZER, unit_rate=2)
