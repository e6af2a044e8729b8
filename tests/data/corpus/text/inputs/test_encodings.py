"""Bytes of pages and books in many encodings, labelled rightly, wrongly or not."""

import random

import pytest

from megagpt.data.corpus.text.inputs.encodings import Undecodable, decode

TEXTS = {
    "ru": "Привет, как дела? Это обычный русский текст о погоде и природе, написанный в старой кодировке. " * 5,
    "fr": "L'été dernier, nous sommes allés à la plage près de Nîmes. C'était très agréable. " * 5,
    "pl": "Zażółć gęślą jaźń. Wszyscy ludzie rodzą się wolni i równi w swojej godności. " * 5,
    "ja": "これは日本語の文章です。天気がいいので散歩に行きましょう。" * 5,
    "zh": "这是一个中文句子。今天天气很好，我们去散步吧。" * 5,
    "ko": "이것은 한국어 문장입니다. 오늘은 날씨가 좋아서 산책을 갑시다. " * 5,
    "en": "It’s a “quoted” text — with dashes, like most English books. " * 5,
}
ENCODED = [
    ("ru", "cp1251", "windows-1251"),
    ("ru", "koi8-r", "KOI8-R"),
    ("fr", "latin-1", "iso-8859-1"),
    ("pl", "iso8859-2", "ISO-8859-2"),
    ("ja", "shift_jis", "x-sjis"),
    ("ja", "euc_jp", "euc-jp"),
    ("ja", "iso2022_jp", "iso-2022-jp"),
    ("zh", "gb18030", "gb2312"),
    ("ko", "euc_kr", "ks_c_5601-1987"),
    ("en", "cp1252", "latin1"),
]


@pytest.mark.parametrize(("language", "encoding", "label"), ENCODED)
def test_stated_by_the_server_by_the_page_and_not_at_all(language, encoding, label):
    text = TEXTS[language]
    assert decode(text.encode(encoding), label)[0] == text
    page = f'<html><head><meta http-equiv="Content-Type" content="text/html; charset={label}"></head>{text}'
    assert decode(page.encode(encoding), markup=True)[0] == page
    assert decode(page.encode(encoding), "nonsense", markup=True)[0] == page
    if encoding != "iso2022_jp":  # which is ASCII
        assert decode(text.encode(encoding))[0] == text


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("label", [None, "utf-8", "iso-8859-1", "windows-1251", "shift_jis", "utf-16", "iso-2022-jp"])
def test_utf8_is_utf8_whatever_the_label(language, label):
    assert decode(TEXTS[language].encode(), label) == (TEXTS[language], "utf-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_byte_order_marks_and_utf16(encoding):
    data = TEXTS["fr"].encode(encoding)
    label = encoding if encoding.endswith("e") else None  # without a mark it must be stated
    assert decode(data, label)[0] == TEXTS["fr"]


def test_a_cut_or_damaged_character_does_not_change_the_encoding():
    data = TEXTS["ru"].encode()
    assert decode(data[:-3], "windows-1251") == (TEXTS["ru"][:-3], "utf-8")  # a blank, a full stop and half a letter
    damaged = data[:101] + b"\xff" + data[101:]
    text, encoding = decode(damaged, "windows-1251")
    assert encoding == "utf-8" and 1 <= text.count("\ufffd") <= 3
    assert decode((TEXTS["fr"] + "x").encode("latin-1"), "utf-8")[0] == TEXTS["fr"] + "x"


def test_what_is_in_no_encoding():
    for data in (random.Random(0).randbytes(5000), b"\xff\xfe" + b"\x00\xd8" * 500):
        with pytest.raises(Undecodable):
            decode(data)
    assert decode(b"") == ("", "utf-8")
