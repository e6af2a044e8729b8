"""Tokenizers of published models' kinds against transformers: ids, text, special tokens, starts and ends."""

import json
import shutil

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megagpt.data import tokenizer as module
from megagpt.data.companions import Companions
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from megagpt.model.text_stream import TextStream
from tests.data.tokenizer_kinds import KINDS, TEXTS, save

HOSTILE = [
    "",
    " ",
    "   two  spaces   \n\n\n",
    "zero\u200bwidth\u200d and \ufeff marks, e\u0301",
    "👩\u200d👩\u200d👧 🎉 中文字 \U0010ffff",
    "a\tb\r\n c\u00a0d\x00e",
    "▁ is spelled out",
    "don't WON'T 123456 ==== _x_ \n x",
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp("tokenizers") / request.param)


@pytest.fixture(scope="module")
def ours(folder) -> Tokenizer:
    return Tokenizer.load(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def theirs(folder) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_ids_and_text_are_those_of_transformers(ours, theirs):
    for text in (*TEXTS[:3], *HOSTILE):
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.start_ids + ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), text
        assert ours.encode_prompt(text)[: len(ours.start_ids)] == ours.start_ids
    assert ours.encode_batch(HOSTILE) == [ours.encode(text) for text in HOSTILE]


def test_marked_text_has_the_ids_and_places_of_transformers(ours, theirs):
    names = "".join(ours.special_ids)
    text = f"{names}the cat{names} sat 🎉 {names}"
    whole, new = ours.unspellable.mark(text, "\ue001", [len(names), len(names) + 7, len(text)])
    ids, offsets = ours.encode_marked(whole)
    wanted = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == wanted["input_ids"]
    before = [[first for first, _ in wanted["offset_mapping"]].index(place) for place in (len(names), len(names) + 7)]
    assert [[first for first, _ in offsets].index(place) for place in new[:2]] == before
    assert new[2] == len(whole)


def test_special_tokens_in_a_text_are_text(ours, theirs):
    for name, index in ours.special_ids.items():
        text = f"a{name}b {name}"
        ids = ours.encode(text)
        assert index not in ids, name
        assert ours.decode(ids) == text
        assert index in theirs(text)["input_ids"]
        assert ours.decode_bytes([index]) == b""


def test_any_text_comes_back_from_a_stream(ours):
    for text in (*TEXTS[:3], *HOSTILE):
        if "e\u0301" in text or "▁" in text:  # NFC composes the one, and SentencePiece spells spaces by the other
            continue
        if ours.puts_space and text.startswith(" ") and ours.decode_bytes(ours.encode(text)).decode() == text:
            continue  # Metaspace puts no space before a text that has one
        ids = ours.encode(text)
        stream = TextStream()
        streamed = "".join(stream.add(ours.decode_bytes([token])) for token in ids) + stream.finish()
        assert ours.without_start(streamed) == ours.decode(ids) == text
        assert ours.token_bytes[ids].sum() == len(streamed.encode())


def test_half_a_character_is_refused(ours):
    for call in (ours.encode, ours.encode_prompt, ours.encode_marked, lambda text: ours.encode_batch([text])):
        with pytest.raises(DataError, match="half of a character"):
            call("a\ud800b")


def test_long_texts_are_cut_only_where_it_makes_no_difference(ours, monkeypatch):
    text = "the cat's _x_ 12 mat\nwas,\n\n on  the 中文 log.\r\n" * 3
    whole = ours.encode(text)
    for piece in (1, 3, 7):
        monkeypatch.setattr(module, "PIECE", piece)
        assert ours.encode(text) == whole


def test_companions_go_where_the_tokenizer_goes(ours, folder, tmp_path):
    ours.save(tmp_path / "run/tokenizer.json")
    ours.save(tmp_path / "other/chat.json")
    for path in ("run/tokenizer.json", "other/chat.json"):
        again = Tokenizer.load(tmp_path / path)
        assert (again.end_ids, again.start_ids, again.end_of_text) == (ours.end_ids, ours.start_ids, ours.end_of_text)
        assert again.companions.texts == {
            name: (folder / name).read_text()
            for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
        }


ENDS = {
    "llama3": ("<|end_of_text|>", ["<|end_of_text|>", "<|eot_id|>"], ["<|begin_of_text|>"]),
    "qwen": ("<|endoftext|>", ["<|endoftext|>", "<|im_end|>"], []),
    "neox": ("<|endoftext|>", ["<|endoftext|>"], []),
    "phi": ("<|endoftext|>", ["<|endoftext|>", "<|end|>", "<|assistant|>"], []),
    "gemma": ("<eos>", ["<eos>", "<end_of_turn>"], ["<bos>"]),
    "llama2": ("</s>", ["</s>"], ["<s>"]),
    "mistral": ("</s>", ["</s>"], ["<s>"]),
    "unigram": ("</s>", ["</s>"], ["<s>"]),
}


def test_starts_and_ends(ours, folder, tmp_path):
    end, ends, start = ENDS[folder.name]
    assert ours.end_of_text == end
    assert ours.end_ids == {ours.special_ids[name] for name in ends}
    assert ours.start_ids == [ours.special_ids[name] for name in start]
    assert ours.encode_prompt("") == (ours.start_ids or [ours.end_of_text_id])
    shutil.copy(folder / "tokenizer.json", tmp_path)
    alone = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (alone.end_of_text, alone.start_ids) == (end, ours.start_ids)


def test_more_special_tokens_keep_all_ids(ours):
    grown = ours.with_special_tokens(["<|new|>", *ours.special_ids, "<|newer|>"])
    assert grown.first_difference(ours) is None
    assert [grown.special_ids[name] for name in ("<|new|>", "<|newer|>")] == [ours.vocab_size, ours.vocab_size + 1]
    assert [grown.encode(text) for text in HOSTILE] == [ours.encode(text) for text in HOSTILE]
    assert np.array_equal(grown.token_bytes[: ours.vocab_size], ours.token_bytes)


def changed(folder, target, change):
    shutil.copytree(folder, target)
    spec = json.loads((target / "tokenizer.json").read_text())
    change(spec)
    (target / "tokenizer.json").write_text(json.dumps(spec))
    return target / "tokenizer.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec["model"].update(byte_fallback=False), "no byte fallback"),
        (
            lambda spec: spec["model"]["vocab"].pop("<0x41>") and spec["model"]["vocab"].update(gone=65),
            "no token <0x41>",
        ),
        (
            lambda spec: spec.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
            "decoder is WordPiece",
        ),
        (lambda spec: spec["model"].update(type="WordLevel", unk_token="<unk>"), "is WordLevel"),
        (lambda spec: spec.update(decoder=None), "decoder is none"),
        (lambda spec: spec["decoder"]["decoders"][0].update(content="_"), "a decoder that megagpt does not know"),
        (lambda spec: spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 300, "content": "th"}), "merges"),
    ],
)
def test_what_gives_texts_back_otherwise_is_refused(tmp_path, change, message):
    path = changed(save("llama2", tmp_path / "theirs"), tmp_path / "changed", change)
    with pytest.raises(DataError, match=message) as error:
        Tokenizer.load(path)
    assert str(path) in str(error.value)


def test_damaged_companions_are_named(tmp_path):
    folder = save("llama2", tmp_path / "theirs")
    (folder / "tokenizer_config.json").write_text("[1")
    with pytest.raises(DataError, match=r"theirs: tokenizer_config\.json, beside the tokenizer, does not hold a JSON"):
        Tokenizer.load(folder / "tokenizer.json")
    for odd in ("2.0", "true", "{}"):
        assert Companions({"generation_config.json": f'{{"eos_token_id": {odd}}}'}).ends == []
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0b")
    with pytest.raises(DataError, match=r"tokenizer\.model alone is not enough"):
        Tokenizer.load(folder / "tokenizer.json")
