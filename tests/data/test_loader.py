"""Batches: the same samples in every layout, held-out text predicted once, documents kept apart when asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megagpt.config.schema import Config, CorpusConfig, DataConfig, ModelConfig, ParallelConfig
from megagpt.data.code_tokens import FIM_TOKENS, grow_for_code
from megagpt.data.fim import FillInTheMiddle
from megagpt.data.indexed import write_corpus
from megagpt.data.loader import PretrainLoader
from megagpt.data.packed import PackedCorpus
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import ConfigError, DataError
from megagpt.stages.base import has_documents

TEXTS = {
    "a": [f"document {n} of the first corpus: {'la ' * (n % 17)}" for n in range(120)],
    "b": [f"second corpus, {n}! {'Ünïcödé 中文 ' * (n % 11)}" for n in range(80)],
}
LENGTH = 24


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("data")
    tokenizer = train_tokenizer(TEXTS["a"] + TEXTS["b"], 300)
    tokenizer.save(folder / "tokenizer.json")
    for name, texts in TEXTS.items():
        documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id]) for text in texts]
        about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
        parts = ((np.array([len(d)], np.int32), d) for d in documents)
        write_corpus(folder / name, parts, len(documents), about)
    corpora = (CorpusConfig(str(folder / "a"), 3.0), CorpusConfig(str(folder / "b"), 1.0))
    return Config(
        model=ModelConfig(sequence_length=LENGTH, vocab_size=300),
        data=DataConfig(str(folder / "tokenizer.json"), corpora, split=(0.8, 0.1, 0.1)),
        parallel=ParallelConfig(micro_batch_size=2),
    )


def with_data(config: Config, **changes) -> Config:
    return replace(config, data=replace(config.data, **changes))


def with_micro_batch(config: Config, size: int) -> Config:
    return replace(config, parallel=replace(config.parallel, micro_batch_size=size))


def test_batch(config):
    batch = next(PretrainLoader(config).micro_batches(0, 4, 0, 1))
    for name, dtype in [("tokens", torch.int64), ("labels", torch.int64), ("position_ids", torch.int64)]:
        assert getattr(batch, name).shape == (2, LENGTH)
        assert getattr(batch, name).dtype == dtype
    assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
    assert torch.equal(batch.loss_mask, torch.ones(2, LENGTH))
    assert torch.equal(batch.position_ids, torch.arange(LENGTH).expand(2, LENGTH))
    assert batch.document_ids is None
    assert batch.to("meta").tokens.device.type == "meta"


@pytest.mark.parametrize(("ranks", "size"), [(1, 1), (1, 3), (2, 2), (3, 4), (4, 1)])
def test_the_same_samples_in_every_layout(config, ranks, size):
    reference = PretrainLoader(config)
    loaders = [PretrainLoader(with_micro_batch(config, size)) for _ in range(ranks)]
    first = 0
    for global_batch in (12, 12, 24, 12):  # as in a batch-size ramp
        per_rank = [
            [batch.tokens for batch in loader.micro_batches(first, global_batch, rank, ranks)]
            for rank, loader in enumerate(loaders)
        ]
        in_order = torch.cat([tokens for step in zip(*per_rank, strict=True) for tokens in step])
        expected = np.stack([reference.mixture[first + n][:-1] for n in range(global_batch)])
        assert np.array_equal(in_order.numpy(), expected)
        first += global_batch


def test_jumping_and_abandoning_do_not_confuse_reading_ahead(config):
    loader, reference = PretrainLoader(config), PretrainLoader(config)
    next(loader.micro_batches(0, 8, 0, 1))
    for first in (400, 6, 6, 7, 0):
        got = torch.cat([batch.tokens for batch in loader.micro_batches(first, 8, 0, 1)])
        assert np.array_equal(got.numpy(), np.stack([reference.mixture[first + n][:-1] for n in range(8)]))


def test_batch_that_cannot_be_shared_names_both_sizes(config):
    with pytest.raises(ConfigError, match=r"10 sequences cannot be shared by 3 .*parallel\.micro_batch_size"):
        next(PretrainLoader(config).micro_batches(0, 10, 0, 3))


@pytest.mark.parametrize(("ranks", "size"), [(1, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("max_tokens", [None, 100, 7])
def test_held_out_text_is_predicted_once(config, ranks, size, max_tokens):
    loader = PretrainLoader(config)
    per_rank = [list(loader.evaluation_batches("validation", max_tokens, rank, ranks, size)) for rank in range(ranks)]
    assert len({len(batches) for batches in per_rank}) == 1
    batches = [batch for step in zip(*per_rank, strict=True) for batch in step]
    mask = torch.cat([batch.loss_mask for batch in batches]).bool()
    labels = torch.cat([batch.labels for batch in batches])[mask].numpy()
    expected = [
        corpus.read(0, corpus.num_tokens if max_tokens is None else min(corpus.num_tokens, int(max_tokens * share)))
        for corpus, share in zip(loader.corpora["validation"], (0.75, 0.25), strict=True)
    ]
    assert np.array_equal(labels, np.concatenate(expected))
    text = loader.held_out_text("validation", max_tokens)
    assert text == loader.tokenizer.decode_bytes(labels)
    assert loader.evaluation_bytes("validation", max_tokens) == len(text)


def test_ranks_share_the_counting_of_held_out_bytes(config, monkeypatch):
    """One rank alone would read gigabytes while the others wait for it."""
    read, ranks, chunk = [], 4, 16
    monkeypatch.setattr("megagpt.data.loader.CHUNK", chunk)
    loader = PretrainLoader(config)
    total = sum(corpus.num_tokens for corpus in loader.corpora["validation"])
    chunks = sum(-(-corpus.num_tokens // chunk) for corpus in loader.corpora["validation"])
    assert chunks > ranks
    counted, inner = [], PackedCorpus.read
    monkeypatch.setattr(PackedCorpus, "read", lambda *arguments: read.append(arguments[2]) or inner(*arguments))
    for rank in range(ranks):
        read.clear()
        counted.append(loader.evaluation_bytes("validation", None, rank, ranks))
        assert sum(read) <= -(-chunks // ranks) * chunk < total
    assert sum(counted) == len(loader.held_out_text("validation"))


def test_few_tokens_for_many_corpora_are_some(config):
    loader = PretrainLoader(with_micro_batch(config, 1))
    masks = [int(batch.loss_mask.sum()) for batch in loader.evaluation_batches("validation", 1)]
    assert masks == [1, 1]  # one token of each corpus
    assert has_documents(loader)


def test_inputs_of_evaluation_are_the_tokens_before(config):
    loader = PretrainLoader(config)
    tokens = torch.cat([batch.tokens for batch in loader.evaluation_batches("test", None, 0, 1, 1)])
    stream = loader.corpora["test"][0].read(0, 3 * LENGTH)
    assert tokens[0, 0] == loader.tokenizer.end_of_text_id
    assert np.array_equal(tokens[:3].flatten()[1:].numpy(), stream[:-1])


def test_held_out_text_is_whole_documents_in_order(config):
    loader = PretrainLoader(config)
    texts = [TEXTS[name][d] for name, c in zip("ab", loader.corpora["test"], strict=True) for d in c.documents]
    assert loader.held_out_text("test").decode() == "".join(texts)
    trained = {(n, d) for n, corpus in enumerate(loader.corpora["train"]) for d in corpus.documents}
    assert not any((n, d) in trained for n, corpus in enumerate(loader.corpora["test"]) for d in corpus.documents)


def test_isolated_documents(config):
    loader = PretrainLoader(with_data(config, isolate_documents=True))
    seen = 0
    for batch in loader.micro_batches(0, 16, 0, 1):
        for tokens, positions, documents in zip(batch.tokens, batch.position_ids, batch.document_ids, strict=True):
            position = document = 0
            for index, token in enumerate(tokens):
                assert (int(positions[index]), int(documents[index])) == (position, document)
                ends = int(token) == loader.tokenizer.end_of_text_id
                position, document = (0, document + 1) if ends else (position + 1, document)
            seen += document
    assert seen > 0


@pytest.fixture(scope="module")
def grown(config, tmp_path_factory) -> Config:
    """The same text under a tokenizer that has the tokens for infilling; every other document is rearranged."""
    folder, tokenizer = tmp_path_factory.mktemp("grown"), grow_for_code(Tokenizer.load(config.data.tokenizer))
    tokenizer.save(folder / "tokenizer.json")
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in TEXTS["a"]]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "a", [(lengths, np.concatenate(documents))], len(documents), about)
    corpora = (CorpusConfig(str(folder / "a")),)
    data = replace(config.data, tokenizer=str(folder / "tokenizer.json"), corpora=corpora, fim_rate=0.5)
    model = replace(config.model, vocab_size=tokenizer.vocab_size, sequence_length=64)
    return replace(config, data=data, model=model)


@pytest.mark.parametrize(("ranks", "size"), [(1, 1), (2, 3), (3, 2)])
def test_fim_is_the_same_in_every_layout(grown, ranks, size):
    reference = PretrainLoader(grown)
    fim = FillInTheMiddle(reference.tokenizer, 0.5, 0.5, grown.seed)
    loaders = [PretrainLoader(with_micro_batch(grown, size)) for _ in range(ranks)]
    for first in (0, 300, 12):
        per_rank = [list(loader.micro_batches(first, 12, rank, ranks)) for rank, loader in enumerate(loaders)]
        batches = [batch for step in zip(*per_rank, strict=True) for batch in step]
        expected = [fim.sample(reference.mixture[first + n], first + n) for n in range(12)]
        tokens, masks = (np.stack(rows) for rows in zip(*expected, strict=True))
        assert np.array_equal(torch.cat([batch.tokens for batch in batches]), tokens[:, :-1])
        assert np.array_equal(torch.cat([batch.labels for batch in batches]), tokens[:, 1:])
        assert np.array_equal(torch.cat([batch.loss_mask for batch in batches]), masks)
        assert (tokens == reference.tokenizer.special_ids["<fim_middle>"]).any()


def test_fim_is_for_training_alone(grown):
    plain = PretrainLoader(with_data(grown, fim_rate=0.0))
    assert np.array_equal(plain.mixture[3][:-1], next(plain.micro_batches(3, 2, 0, 1)).tokens[0])
    batches = (loader.evaluation_batches("validation", None) for loader in (PretrainLoader(grown), plain))
    pairs = list(zip(*batches, strict=True))
    assert pairs
    assert all(torch.equal(a.tokens, b.tokens) and torch.equal(a.loss_mask, b.loss_mask) for a, b in pairs)


def test_fim_has_the_configured_shares(grown):
    shares = {"fim_rate": 0.75, "fim_spm_rate": 0.25, "fim_unit_rate": 0.125}
    shares |= {"fim_piece_tokens": 12}
    fim = PretrainLoader(with_data(grown, **shares)).fim
    assert (fim.rate, fim.spm_rate, fim.unit_rate, fim.piece_tokens) == tuple(shares.values())


def test_fim_needs_its_tokens(config):
    with pytest.raises(DataError, match=r"<fim_prefix>.*--extend"):
        PretrainLoader(with_data(config, fim_rate=0.5))


def test_isolated_documents_are_rearranged_each_within_itself(grown):
    loader, parts = PretrainLoader(with_data(grown, isolate_documents=True, fim_rate=1.0)), 0
    special = loader.tokenizer.special_ids
    for batch in loader.micro_batches(0, 32, 0, 1):
        for tokens, positions, documents in zip(batch.tokens, batch.position_ids, batch.document_ids, strict=True):
            for document in documents.unique():
                inside = tokens[documents == document]
                assert torch.equal(positions[documents == document], torch.arange(len(inside)))
                assert loader.tokenizer.end_of_text_id not in inside[:-1]
                counts = [int((inside == special[name]).sum()) for name in FIM_TOKENS[:3]]
                assert len(set(counts)) == 1 or document == documents.max()  # the last label is no input
                assert max(counts) <= 1
                assert inside[0] == special["<fim_prefix>"] or not any(counts)
                parts += counts[0]
    assert parts > 32


def test_one_document_cannot_be_shared_out(config, tmp_path):
    tokenizer = PretrainLoader(config).tokenizer
    tokens = np.array([*tokenizer.encode(TEXTS["a"][0] * 50), tokenizer.end_of_text_id], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(tmp_path / "one", [(np.array([len(tokens)], np.int32), tokens)], 1, about)
    with pytest.raises(DataError, match="of 1 document; cut the text into more documents"):
        PretrainLoader(with_data(config, corpora=(CorpusConfig(str(tmp_path / "one")),), split=(0.9, 0.1, 0)))


def test_refuses_a_corpus_of_another_tokenizer(config, tmp_path):
    other = train_tokenizer(TEXTS["a"], 290)
    other.save(tmp_path / "other.json")
    with pytest.raises(DataError) as error:
        PretrainLoader(with_data(config, tokenizer=str(tmp_path / "other.json")))
    sha256 = PretrainLoader(config).tokenizer.sha256
    assert all(part in str(error.value) for part in (other.sha256[:12], sha256[:12], "other.json"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: with_data(c, corpora=()), ConfigError, r"data\.corpora is empty"),
        (lambda c: replace(c, model=replace(c.model, vocab_size=299)), ConfigError, r"set model\.vocab_size=300"),
        (lambda c: with_data(c, split=(0.999999, 1e-6, 0)), DataError, "no document fell into the validation split"),
        (lambda c: replace(c, model=replace(c.model, sequence_length=10**5)), DataError, "too short"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(config, change, error, message):
    with pytest.raises(error, match=message):
        PretrainLoader(change(config))


def test_held_out_batches_are_made_when_they_are_read(config, monkeypatch):
    """All of them may be more than memory holds."""
    loader, made = PretrainLoader(config), []
    make = loader._evaluation_batch
    monkeypatch.setattr(loader, "_evaluation_batch", lambda *arguments: made.append(1) or make(*arguments))
    batches = loader.evaluation_batches("validation", None)
    assert len(batches) > 3 and not made
    next(iter(batches))
    assert len(made) == 1
    assert len(list(batches)) == len(batches) == len(list(batches))
