"""What is known of a text is what plain loops over its characters find."""

import random
import unicodedata

import numpy as np
import pytest
import xxhash

from megagpt.data.corpus.text.analysis import Analysis, count_sentences, hash_words, split_sentences

ODD = [
    "",
    " ",
    "\n\n\n",
    "a",
    "one two\tthree\x1cfour\x85five\u2028six\u3000seven\u200bno",
    "ΟΔΟΣ ΣΑΣ İstanbul ß ẞ \ud800 lone \U0001f600 é",
    "\ufeffmark 中文abc字 ภาษาไทย한국어 かなカナ",
]
LETTERS = "abcXYZ ÅßçΣσ \n\t\u00a0\u2029中文字あアก\u0e31ع한.!?-\u200b\U0001f600\U00020000\ud800"


def texts() -> list[str]:
    dice = random.Random(0)
    return ODD + ["".join(dice.choices(LETTERS, k=dice.randrange(80))) for _ in range(500)]


def is_unspaced(character: str) -> bool:
    """By its name in Unicode, for the letters of these tests."""
    return unicodedata.name(character, "").startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI"))


def plain_words(text: str) -> list[str]:
    words = [""]
    for character in text:
        if character.isspace() or is_unspaced(character):
            words += [character, ""]
        else:
            words[-1] += character
    return [word for word in words if word.strip()]


def hashes(words: list[str]) -> list[int]:
    return [xxhash.xxh3_64(word.encode("utf-8", "surrogatepass")).intdigest() for word in words]


def check(text: str) -> None:
    found = Analysis(text)
    words = plain_words(text)
    assert found.words == words
    assert found.lengths.tolist() == [len(word) for word in words]
    assert found.starts.tolist() == [sum(map(len, words[:place])) for place in range(len(words))]
    assert found.characters.tolist() == [ord(character) for word in words for character in word]
    assert found.hashes.tolist() == hashes(words)
    assert found.lower_hashes.tolist() == hashes([word.lower() for word in words])
    assert found.hashes.dtype == found.lower_hashes.dtype == np.uint64
    assert "".join(found.sentences) == text and "" not in found.sentences


def test_words_and_their_arrays():
    for text in texts():
        check(text)


def test_english_words_are_those_of_str_split():
    text = "It's  a “test”,\r\nof words-with-hyphens\u00a0and 3.5 numbers."
    assert Analysis(text).words == text.split()


def test_hashes_do_not_depend_on_the_process():
    assert hash_words(["the", "a", "日"]).tolist() == [14632902600990866813, 16629034431890738719, 17646493872434087364]


def test_lines_and_paragraphs():
    found = Analysis("one\ntwo\n\n\nthree\r\nfour\n")
    assert found.lines == ["one", "two", "", "", "three", "four"]
    assert found.paragraphs == ["one\ntwo", "three\r\nfour"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("One.\nTwo.", ["One.\n", "Two."]),
        ('He said: "Go." She went.', ['He said: "Go." ', "She went."]),
        ("J. R. Smith of the U.S. Army. He left.", ["J. R. Smith of the U.S. Army. ", "He left."]),
        ("It is approx. five metres, i.e. long.", ["It is approx. five metres, i.e. long."]),
        ("Version 3.5 is at example.com now", ["Version 3.5 is at example.com now"]),
        ("Wait... What?! Yes.", ["Wait... ", "What?! ", "Yes."]),
        ("你好。再见！「走吧。」他说", ["你好。", "再见！", "「走吧。」", "他说"]),
        ("यह है। वह है।", ["यह है। ", "वह है।"]),
        ("", []),
        ("  ", ["  "]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences
    assert [count_sentences(text, most) for most in range(1, 9)] == [min(len(sentences), most) for most in range(1, 9)]


def test_a_text_of_one_long_word_takes_no_longer_than_its_length():
    text = "." * 300_000 + "a" * 300_000
    assert Analysis(text).words == [text]
    assert Analysis(text).sentences == [text]
