"""Languages are told without a network, for any text, and by a file of fastText where one is given."""

import gzip
import json
import random
import sys

import pytest

from megagpt.data.corpus.text.limits import Languages
from megagpt.data.corpus.text.rules.languages import Language, load_identifier, wrong_language
from megagpt.errors import ConfigError

ENGLISH = "The river runs through the old town, and the children who live there swim in it all summer long. "
GERMAN = "Der Fluss fließt durch die alte Stadt, und die Kinder, die dort wohnen, schwimmen den ganzen Sommer darin. "
CODES = {"eng": "en", "zho": "zh", "fra": "fr", "deu": "de", "spa": "es", "rus": "ru", "jpn": "ja", "kor": "ko"}
CODES |= {"arb": "ar", "hin": "hi", "por": "pt", "vie": "vi", "tha": "th", "tur": "tr", "swh": "sw"}


def test_shares_of_a_text():
    identify = load_identifier("cld2")
    assert identify(ENGLISH * 3).code == "en" and identify(ENGLISH * 3).score > 0.95
    mixed = identify(ENGLISH * 6 + GERMAN * 3)
    assert mixed.code == "en" and 0.5 < mixed.score < 0.8
    assert identify("") == identify("12 34 $%&") == Language("un", 0.0)


def test_markup_in_a_text_is_text():
    assert load_identifier("cld2")("<" + ENGLISH + ">").code == "en"


def test_no_text_is_refused():
    """Control characters, lone surrogates and code points that are no characters, which CLD2 takes for broken UTF-8."""
    identify = load_identifier("cld2")
    assert identify(f"\x00{ENGLISH}\x1b\x7f{ENGLISH}\ud800 \ufffe \U0010ffff \ufdd0").code == "en"
    dice = random.Random(0)
    everything = list(range(0x300)) + [dice.randrange(0x110000) for _ in range(5000)] + list(range(0xD700, 0xE001))
    for first in range(0, len(everything), 500):
        identify("".join(map(chr, everything[first : first + 500])))
    for code in range(0xFFF0, 0x10010):
        identify(chr(code))


def test_sixteen_languages(data_dir):
    """Five sentences of FLORES-200 at a time."""
    with gzip.open(data_dir / "flores200/flores200_dev.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file][:500]
    identify = load_identifier("cld2")
    for key in records[0].keys() - {"id"}:
        texts = [" ".join(record[key] for record in records[first : first + 5]) for first in range(0, 500, 5)]
        found = [identify(text) for text in texts]
        assert sum(language.code == CODES[key[:3]] and language.score >= 0.65 for language in found) >= 95, key


@pytest.mark.parametrize(
    ("language", "rule"),
    [
        (Language("en", 0.65), None),
        (Language("en", 0.6499), "unsure language"),
        (Language("de", 0.99), "other language"),
        (Language("un", 0.0), "other language"),
        (Language("fr", 0.9), None),
    ],
)
def test_which_are_kept(language, rule):
    drop = wrong_language(language, Languages(keep=("en", "fr")))
    assert (drop and drop.rule) == rule


def test_a_model_of_fasttext(tmp_path):
    fasttext = pytest.importorskip("fasttext")
    train = tmp_path / "train.txt"
    train.write_text("".join(f"__label__en {ENGLISH}\n__label__de {GERMAN}\n" for _ in range(50)))
    model = fasttext.train_supervised(str(train), dim=8, bucket=1000, minn=2, maxn=3, epoch=20, thread=1, verbose=0)
    model.save_model(str(tmp_path / "model.bin"))
    identify = load_identifier(str(tmp_path / "model.bin"))
    for text, code in ((ENGLISH, "en"), (GERMAN, "de"), ("\nThe town\nwhere\u2028children swim\ud800\n", "en")):
        language = identify(text)
        assert language.code == code and 0.5 < language.score <= 1
    assert identify("").score <= 1


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"languages\.model: .*nowhere: no such file; it is cld2, or a file"):
        load_identifier(str(tmp_path / "nowhere"))
    (tmp_path / "broken").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="is not a fastText model"):
        load_identifier(str(tmp_path / "broken"))
    monkeypatch.setitem(sys.modules, "pycld2", None)
    load_identifier.cache_clear()
    with pytest.raises(ConfigError, match=r'pip install "megagpt\[corpora\]"'):
        load_identifier("cld2")
