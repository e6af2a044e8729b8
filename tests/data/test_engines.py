"""GigaToken gives the ids of the tokenizers library wherever it is chosen, within bounded memory, and says when not."""

import gzip
import json
import logging
import random
import re
import string
import sys
import sysconfig
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import engines
from megagpt.data.chat import grow_for_chat
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.engines import GigaToken, choose_engine, make_encoder, obstacle
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from megagpt.errors import ConfigError

TEXTS = [
    "the cat sat on the mat; the dog's log isn't there, they'll say.\n\n",
    "def f(x):\n    if x > 10:\n        return  x + 1  # 2,000\n",
    "naïve café — 中文字符，日本語のテキスト 🎉 Ελλάδα Москва",
] * 5
LANGUAGES = ("eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "rus_Cyrl", "arb_Arab", "hin_Deva", "zho_Hans", "jpn_Jpan")
KINDS = ("plain", "code", "chat", "shuffled", "of bytes")


def changed(tokenizer: Tokenizer, change) -> Tokenizer:
    """`tokenizer` after `change` was made to the content of its tokenizer.json."""
    spec = json.loads(tokenizer.to_json())
    change(spec)
    return Tokenizer(json.dumps(spec).encode())


def shuffle_ids(spec) -> None:
    """Number the tokens in any order, as RoBERTa's are: then ids do not say which merge goes first."""
    vocab = spec["model"]["vocab"]
    ids = list(vocab.values())
    random.Random(0).shuffle(ids)
    vocab.update(zip(vocab, ids, strict=True))


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train_tokenizer(TEXTS, 420)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, plain) -> Tokenizer:
    return {
        "plain": lambda: plain,
        "code": lambda: grow_for_code(plain),
        "chat": lambda: grow_for_chat(grow_for_code(plain)),
        "shuffled": lambda: changed(plain, shuffle_ids),
        "of bytes": lambda: train_tokenizer([], 257),
    }[request.param]()


@lru_cache
def fast(tokenizer: Tokenizer) -> GigaToken:
    return GigaToken(tokenizer)


def assert_same(tokenizer: Tokenizer, texts) -> int:
    """Compare GigaToken's ids with the library's, and return how many bytes of text that was."""
    encode, waiting, size = fast(tokenizer), [], 0

    def compare() -> None:
        for text, expected, ids in zip(waiting, tokenizer.encode_batch(waiting), encode(waiting), strict=True):
            assert ids.tolist() == expected, repr(text[:200])

    for text in texts:
        waiting.append(text)
        size += len(text.encode())
        if sum(map(len, waiting[-1000:])) > 300_000 or len(waiting) == 1000:
            compare()
            waiting.clear()
    compare()
    return size


@given(text=st.text(st.sampled_from("ab7S \n\t\r.,'\x1c\x85\u3000中。_étsrevmld"), max_size=80) | st.text())
@settings(max_examples=150, deadline=None)
def test_any_text(tokenizer, text):
    assert_same(tokenizer, [text, f"{text}{text}", ""])


@cache
def pairs_of_bytes() -> list[str]:
    """A text for every byte, and for every two bytes, that may stand in UTF-8 one after the other."""
    befores, afters = ("", "c3", "e1", "e180", "f1", "f180"), ("", "80", "8080", "808080", "a080", "908080")
    around, texts = [(before, after) for before in befores for after in afters], []
    for pair in range(1 << 16):
        for before, after in around:
            data = bytes.fromhex(f"{before}{pair:04x}{after}")
            try:
                texts.append(data.decode())
                break
            except UnicodeDecodeError:
                pass
    return texts


def test_every_byte_and_every_pair_of_bytes(tokenizer):
    texts = [*map(chr, range(256)), *pairs_of_bytes()]
    seen = {bytes(pair) for text in texts for pair in zip(text.encode(), text.encode()[1:], strict=False)}
    starts, ends = 128 + 51, 128 + 64  # the bytes with which a character may begin, and with which it may end
    inside = 30 * 64 + (32 + 14 * 64 + 32) + (48 + 3 * 64 + 16) + 64 * 64  # after a first byte, and after another
    assert len(seen) == ends * starts + inside
    assert_same(tokenizer, texts)


def test_every_unicode_category(plain):
    """All characters where a category begins or ends, beside others of all kinds that GPT-2's pattern tells apart."""
    categories = [unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)]
    ends = [
        chr(code)
        for code in range(1, sys.maxunicode)
        if categories[code] != "Cs" and not categories[code - 1] == categories[code] == categories[code + 1]
    ]
    assert set(map(unicodedata.category, ends)) == set(categories) - {"Cs"}
    assert_same(plain, (f"the{c}the {c}{c}1{c}.{c} \n{c}" for c in ends))


@pytest.mark.slow
def test_every_character(thorough, plain):
    """Beyond the basic plane, where most code points are no characters yet, every eighth is enough mostly."""
    codes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, sys.maxunicode + 1, 1 if thorough else 8)]
    assert_same(plain, (f"the{c}the {c}{c}1{c}.{c} \n{c}" for c in map(chr, codes)))


def test_special_tokens_in_text_are_plain_text(tokenizer):
    names = [END_OF_TEXT, "<|user|>", "<|assistant|>", "<fim_prefix>", "<fim_pad>"]
    texts = [*names, *(f"a{name}b {name}{name}\n" for name in names), "".join(names), " ".join(names)]
    assert_same(tokenizer, texts)
    special = set(tokenizer.special_ids.values())
    assert not special & {index for ids in GigaToken(tokenizer)(texts) for index in ids.tolist()}


@pytest.mark.parametrize("piece", ["a", "the", " ", "\n", "=", "1", "中", "é", "\u0301", " \t", "a1", "'s", "ab "])
def test_long_runs(tokenizer, piece):
    assert_same(tokenizer, [piece * count for count in (15, 16, 31, 32, 33, 255, 1000, 20_000 // len(piece))])


def test_no_texts_and_empty_texts(plain):
    assert GigaToken(plain)([]) == []
    assert [ids.tolist() for ids in GigaToken(plain)(["", "a", ""])] == [[], plain.encode("a"), []]


def test_one_huge_text(plain):
    assert_same(plain, ["".join(TEXTS) * (4_000_000 // len("".join(TEXTS)))])


def records(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(map(json.loads, file))


def documents(folder: Path) -> list[str]:
    """Real texts: novels, speeches, articles, sentences in many languages, and source code; about 60 MB."""
    files = [
        "english_novels/novels_en.jsonl.gz",
        "novels_de_fr_ja/novels_de_fr_ja.jsonl.gz",
        "chinese_classics/novels_zh.jsonl.gz",
        "us_speeches/state_union.jsonl.gz",
        "wiki_c4_demo/c4_demo.jsonl.gz",
    ]
    if not all((folder / name).exists() for name in [*files, "flores200/flores200_dev.jsonl.gz"]):
        pytest.skip(f"some of {', '.join(files)} are absent from {folder}")
    texts = [record["text"] for name in files for record in records(folder / name)]
    flores = records(folder / "flores200/flores200_dev.jsonl.gz")
    assert set(LANGUAGES) <= flores[0].keys()
    texts += ["\n".join(record[name] for record in flores) for name in flores[0] if name != "id"]
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if "-packages" not in str(path)]
    return texts + [path.read_bytes().decode(errors="replace") for path in files]


def respelled(text: str, chance: random.Random) -> str:
    """`text` in words that were never seen: every letter becomes another one."""
    letters = list(string.ascii_letters)
    chance.shuffle(letters)
    return text.translate(str.maketrans(string.ascii_letters, "".join(letters)))


def test_ten_languages_and_code(data_dir):
    texts = documents(data_dir)
    chance = random.Random(0)
    parts = [text[start : start + 2000] for text in texts if (start := chance.randrange(max(1, len(text) - 2000))) >= 0]
    known = grow_for_chat(grow_for_code(train_tokenizer(chance.sample(parts, 700), 8192)))
    assert assert_same(known, parts) > 3_000_000


@pytest.mark.slow
@pytest.mark.thorough
def test_a_hundred_megabytes(data_dir):
    """All of the texts, and all again in other letters."""
    texts, chance = documents(data_dir), random.Random(0)
    chance.shuffle(texts)
    known = grow_for_code(train_tokenizer(texts[::8], 50_257))
    more = chance.sample(texts, len(texts))
    assert assert_same(known, [*texts, *(respelled(text, chance) for text in more)]) > 100_000_000


def resident() -> int:
    return int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_new_words(plain):
    chance, encode = random.Random(0), GigaToken(plain)
    words = "".join(chance.choices(string.ascii_letters + " ", k=1 << 20))
    sizes = []
    for megabytes in range(1, 81):
        encode([respelled(words, chance)])
        if megabytes in (10, 80):
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 120 << 20  # without a bound it is over 400


def test_ids_are_the_same_after_the_caches_were_emptied(plain, monkeypatch):
    made = []
    monkeypatch.setattr(engines, "CHECKED_BYTES", 100)
    monkeypatch.setattr(engines, "CACHE_BYTES", -1 << 40)
    renew = GigaToken._renew
    monkeypatch.setattr(GigaToken, "_renew", lambda self: (made.append(1), renew(self)))
    fast.cache_clear()
    assert_same(plain, TEXTS * 3)
    assert 3 < len(made) <= sum(len(text.encode()) for text in TEXTS * 3) / 100 + 1


def test_where_memory_cannot_be_read_caches_are_emptied_by_the_amount_of_text(plain, monkeypatch):
    monkeypatch.setattr(engines, "CHECKED_BYTES", 100)
    monkeypatch.setattr(engines, "_resident_bytes", lambda: None)
    fast.cache_clear()
    assert_same(plain, TEXTS * 3)


def split(spec) -> None:
    pattern = {"Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"}
    parts = [
        {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}


def same_product(spec) -> None:
    for pair in (["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]):
        spec["model"]["vocab"].setdefault("".join(pair), max(spec["model"]["vocab"].values()) + 1)
        spec["model"]["merges"].append(pair)


def ordinary(spec) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    index = 1 + max(token["id"] for token in spec["added_tokens"])
    spec["added_tokens"].append({"id": index, "content": "the cat", **flags})


def without_a_byte(spec) -> None:
    del spec["model"]["vocab"]["q"]


OBSTACLES = [
    (split, "its splitting pattern is not GPT-2's"),
    (lambda spec: spec["pre_tokenizer"].update(use_regex=False), "its splitting pattern is not GPT-2's"),
    (lambda spec: spec.update(pre_tokenizer=None), "its splitting pattern is not GPT-2's"),
    (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
    (lambda spec: spec.update(normalizer={"type": "NFC"}), r"it has a normalizer \(NFC\)"),
    (lambda spec: spec["model"].update(ignore_merges=True), "its model has ignore_merges"),
    (lambda spec: spec["model"].update(dropout=0.1), "its model has dropout"),
    (ordinary, "its added token 'the cat' is not a special one"),
    (same_product, "two of its merges make the same token"),
    (without_a_byte, "not spelled in bytes"),
]


@pytest.mark.parametrize(("change", "why"), OBSTACLES)
def test_other_rules_are_left_to_tokenizers_and_the_log_says_so(plain, change, why, caplog):
    known = changed(plain, change)
    with caplog.at_level("INFO"):
        engine = choose_engine(known)
    assert engine.name == "tokenizers"
    (record,) = caplog.records
    assert record.levelno == logging.INFO and re.search(
        rf"^tokenizers [\d.]+ tokenizes, and not GigaToken.*{why}", record.message
    )
    if not json.loads(known.to_json())["model"]["dropout"]:
        encode = make_encoder(known, engine)
        assert [ids.tolist() for ids in encode(TEXTS[:3])] == known.encode_batch(TEXTS[:3])
    with pytest.raises(ConfigError, match=f"GigaToken cannot serve this tokenizer.*{why}"):
        choose_engine(known, "gigatoken")


def test_gigatoken_is_chosen_and_the_log_says_so(tokenizer, caplog):
    assert obstacle(tokenizer) is None
    with caplog.at_level("INFO"):
        assert choose_engine(tokenizer).name == choose_engine(tokenizer, "gigatoken").name == "gigatoken"
        assert choose_engine(tokenizer, "tokenizers").name == "tokenizers"
    messages = [record.message for record in caplog.records]
    assert messages[0] == messages[1] and re.search(r"^GigaToken [\d.]+ tokenizes.* ids of tokenizers", messages[0])
    assert re.search(r"^tokenizers [\d.]+ tokenizes, as asked for", messages[2])


class Panic(BaseException):
    """As what a panic in Rust becomes."""


def other_ids(self, texts):
    return [ids + (text == END_OF_TEXT) for text, ids in zip(texts, CALL(self, texts), strict=True)]


def panic(self, texts):
    raise Panic("index out of bounds")


CALL = GigaToken.__call__


@pytest.mark.parametrize(
    ("call", "why"), [(other_ids, "other ids for the test text '<.endoftext.>'"), (panic, "Panic")]
)
def test_a_faulty_gigatoken_is_found_out(plain, call, why, monkeypatch, caplog):
    monkeypatch.setattr(GigaToken, "__call__", call)
    assert choose_engine(plain).name == "tokenizers"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and re.search(why, record.message)
    with pytest.raises(ConfigError, match=why):
        choose_engine(plain, "gigatoken")


def test_without_gigatoken(plain, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    assert choose_engine(plain).name == "tokenizers"
    assert "not installed (pip install gigatoken)" in caplog.text
