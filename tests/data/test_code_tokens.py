"""A tokenizer grown for code: old ids stay, runs of spaces are one token, what it saves, round trips, transformers."""

import gzip
import json
import re
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from megagpt.data.code_tokens import FIM_PAD, FIM_TOKENS, LONGEST_RUN, grow_for_code
from megagpt.data.standard_library import documents
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from megagpt.errors import ConfigError

PROSE = ["the cat sat on the mat; the dog sat on the log.\n", "naïve café 中文 🎉"] * 5
CODE = ["class A:\n    def f(self, x):\n        if x:\n            return  x + 1\n\n       # odd\n"] * 5


@pytest.fixture(scope="module", params=[PROSE, CODE], ids=["prose", "code"])
def old(request) -> Tokenizer:
    """One without any run of spaces, and one that has learnt some, in its own way."""
    return train_tokenizer(request.param, 300)


@pytest.fixture(scope="module")
def new(old) -> Tokenizer:
    return grow_for_code(old)


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    return Library.from_str(tokenizer.to_json()).get_vocab()


def test_old_tokens_keep_their_ids(old, new):
    assert vocabulary(old).items() <= vocabulary(new).items()
    assert sorted(vocabulary(new).values()) == list(range(new.vocab_size))
    assert new.end_of_text_id == old.end_of_text_id
    assert [new.decode_bytes([i]) for i in range(old.vocab_size)] == [
        old.decode_bytes([i]) for i in range(old.vocab_size)
    ]
    assert new.vocab_size - old.vocab_size <= LONGEST_RUN - 1 + len(FIM_TOKENS)


def test_every_run_of_spaces_is_one_token(new):
    for length in range(1, LONGEST_RUN + 1):
        assert len(new.encode(" " * length)) == 1
        assert len(new.encode("\n" + " " * length + "x")) <= 3 + (length > 1)  # the word takes the last space
    assert len(new.encode(" " * (2 * LONGEST_RUN))) == 2


@given(text=st.text(st.sampled_from("ab7 \n\t.,'中_"), max_size=80) | st.text())
@settings(max_examples=200, deadline=None)
def test_round_trip_and_text_without_runs_is_encoded_as_before(old, new, text):
    ids = new.encode(text)
    assert new.decode(ids) == text
    assert new.token_bytes[ids].sum() == len(text.encode())
    single = re.sub(" {2,}", " ", text)
    assert new.encode(single) == old.encode(single)


def test_special_tokens(old, new):
    assert list(new.special_ids) == [END_OF_TEXT, *FIM_TOKENS]
    assert old.special_ids == {END_OF_TEXT: old.end_of_text_id}
    for name, index in new.special_ids.items():
        assert index not in new.encode(f"a{name}b")
        assert new.decode(new.encode(f"a{name}b")) == f"a{name}b"
        assert new.decode_bytes([index]) == b""


def test_growing_again_adds_only_longer_runs(new):
    assert grow_for_code(new).sha256 == new.sha256
    longer = grow_for_code(new, LONGEST_RUN + 3)
    assert longer.vocab_size == new.vocab_size + 3
    assert len(longer.encode(" " * (LONGEST_RUN + 3))) == 1
    assert vocabulary(new).items() <= vocabulary(longer).items()


def test_a_tokenizer_that_already_has_some_of_it():
    library = Library.from_str(train_tokenizer(PROSE, 300).to_json())
    library.add_tokens([AddedToken("  ", normalized=False)])  # as CodeGen has runs
    library.add_special_tokens([FIM_PAD])
    old = Tokenizer(library.to_str().encode())
    new = grow_for_code(old)
    assert vocabulary(old).items() <= vocabulary(new).items()
    assert set(new.special_ids) == {END_OF_TEXT, *FIM_TOKENS}
    assert new.decode(new.encode(CODE[0])) == CODE[0]


def test_agrees_with_transformers(new, tmp_path):
    transformers = pytest.importorskip("transformers")
    new.save(tmp_path / "tokenizer.json")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in (PROSE[0], PROSE[1], CODE[0], " " * 50):
        assert other(text)["input_ids"] == new.encode(text)
        assert other.decode(new.encode(text), clean_up_tokenization_spaces=False) == text
    assert {name: other.convert_tokens_to_ids(name) for name in new.special_ids} == new.special_ids
    assert other.decode(list(new.special_ids.values()), skip_special_tokens=True) == ""


def test_saving_on_the_standard_library(data_dir):
    path = data_dir / "english_novels/novels_en.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        novels = [json.loads(line)["text"][:200_000] for _, line in zip(range(8), file, strict=False)]
    old = train_tokenizer(novels, 4096)
    new = grow_for_code(old)
    library = [record["text"] for record in documents(Path(sysconfig.get_paths()["stdlib"]))][::8]
    before, after = (sum(map(len, tokenizer.encode_batch(library))) for tokenizer in (old, new))
    assert after <= 0.8 * before


def test_run_length_is_checked():
    with pytest.raises(ConfigError, match="at least 1"):
        grow_for_code(train_tokenizer(PROSE, 257), 0)
