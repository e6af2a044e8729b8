"""What is made with tokenizers of other models: corpora, parts for filling in the middle, conversations in batches."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megagpt.config.load import from_dict
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.code_tokens import grow_for_code
from megagpt.data.conversation_loader import ConversationLoader
from megagpt.data.engines import obstacle
from megagpt.data.fim import FillInTheMiddle, fim_ids, fim_prompt, fim_style
from megagpt.data.indexed import read_about
from megagpt.data.packed import PackedCorpus
from megagpt.data.preprocess import preprocess
from megagpt.data.ranked_loader import encode_ranking
from megagpt.data.rankings import Ranking
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import DataError
from megagpt.model.generation_config import GenerationConfig
from megagpt.model.row import Row
from tests.data.chat_templates import FAMILIES, GEMMA
from tests.data.tokenizer_kinds import KINDS, TEXTS, save


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp("users") / request.param)


@pytest.fixture(scope="module")
def ours(folder) -> Tokenizer:
    return Tokenizer.load(folder / "tokenizer.json")


def test_fim_of_parts_is_the_text(ours):
    if fim_style(ours) is None:
        with pytest.raises(DataError, match="no special token <fim_prefix>"):
            fim_prompt(ours, "a", "b")
        ours = ours.with_special_tokens(["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"])
    prefix, middle, suffix, pad = fim_ids(ours)
    assert len({prefix, middle, suffix, pad, ours.end_of_text_id}) == 5
    parts = "def f(x):\n", "    return x", " + 1  \n"
    ids = [*fim_prompt(ours, parts[0], parts[2], spm=False), *ours.encode_part(parts[1])]
    assert ids[: len(ours.start_ids)] == ours.start_ids
    places = [ids.index(token) for token in (prefix, suffix, middle)]
    between = zip(places, [*places[1:], len(ids)], strict=True)
    assert [ours.decode_bytes(ids[first + 1 : last]).decode() for first, last in between] == [
        parts[0],
        parts[2],
        parts[1],
    ]
    text = " the cat sat on the mat"
    document = [*ours.start_ids, *ours.encode_part(text), ours.end_of_text_id]
    tokens, mask = FillInTheMiddle(ours, rate=1.0, spm_rate=0.0, seed=3).sample(np.array([*document, *[pad] * 8]), 0)
    new = tokens[: list(tokens).index(ours.end_of_text_id)].tolist()
    pieces = [place for place, token in enumerate(new) if token in (prefix, suffix, middle)]
    said = [ours.decode_bytes(new[a + 1 : b]).decode() for a, b in zip(pieces, [*pieces[1:], len(new)], strict=True)]
    assert said[0] + said[2] + said[1] == text
    assert new[: len(ours.start_ids)] == ours.start_ids
    assert mask.shape == (len(document) + 7,)


def test_other_tokenizers_keep_to_the_library_that_they_were_made_by(ours, folder):
    assert (obstacle(ours) is None) == (folder.name == "phi")
    if folder.name in ("llama3", "gemma"):
        with pytest.raises(DataError, match="of another kind"):
            grow_for_code(ours)


@pytest.mark.parametrize("kind", ["llama3", "gemma", "qwen"])
def test_documents_stand_between_what_the_model_knows(kind, tmp_path):
    folder = save(kind, tmp_path / kind)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3]))
    preprocess([tmp_path / "text.jsonl"], folder / "tokenizer.json", tmp_path / "corpus", workers=1)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.load(folder / "tokenizer.json")
    wanted = [token for text in TEXTS[:3] for token in [*theirs(text)["input_ids"], ours.end_of_text_id]]
    corpus = PackedCorpus(str(tmp_path / "corpus"), (1.0, 0.0, 0.0), "train", 16, 0)
    assert sorted(corpus.read(0, corpus.num_tokens).tolist()) == sorted(wanted[: corpus.num_tokens] or wanted)
    around = read_about(tmp_path / "corpus").get("around_documents")
    assert around == (None if kind == "qwen" else [ours.start_ids, [ours.end_of_text_id]])


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_batches_and_rankings(family, tmp_path):
    kind, template = FAMILIES[family]
    path = save(kind, tmp_path / kind, template) / "tokenizer.json"
    ours = Tokenizer.load(path)
    turns = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "it sat on the mat"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    data = {"tokenizer": str(path), "conversations": [str(tmp_path / "talk.jsonl")], "split": [1.0, 0.0, 0.0]}
    values = {"model": {"sequence_length": 128, "vocab_size": 512}, "data": data, "stage": {"name": "sft"}}
    batch = ConversationLoader(from_dict(values))._train_batch(0)
    learnt = batch.labels[batch.loss_mask.bool()].tolist()
    assert learnt[-1] in ours.end_ids
    assert ours.decode(learnt).removeprefix("<think>\n\n</think>\n\n") == "it sat on the mat"
    asked = (Message("user", "the cat?"),)
    ranked = encode_ranking(ours, Ranking(asked, ("sat", "the dog"), (0, 1)))
    prompt = chat_prompt(ours, asked)
    for row, count in zip(ranked.rows, ranked.answer_tokens, strict=True):
        assert row[-1] in ours.end_ids
        assert row[: len(prompt)].tolist() == prompt
        assert count == len(row) - len(prompt)


def test_a_refused_conversation_is_named_with_its_place(tmp_path):
    path = save("gemma", tmp_path / "gemma", GEMMA) / "tokenizer.json"
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    data = {"tokenizer": str(path), "conversations": [str(tmp_path / "talk.jsonl")], "split": [1.0, 0.0, 0.0]}
    values = {"model": {"sequence_length": 128, "vocab_size": 512}, "data": data, "stage": {"name": "sft"}}
    with pytest.raises(
        DataError, match=r"talk\.jsonl:1: the model's chat template refuses .*: there is no system turn"
    ):
        ConversationLoader(from_dict(values))


def test_every_end_ends_a_text(ours):
    for token in (*ours.end_ids, ours.encode_part("a")[0]):
        row = Row(0, [1], GenerationConfig(max_new_tokens=9), 9, np.zeros(9))
        row.advance(token, 0.0, ours)
        assert row.finish_reason == ("end_of_text" if token in ours.end_ids else None)
