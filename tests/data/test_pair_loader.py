"""The batches of an epoch of pairs: in the order of its permutation, no document twice, soon made."""

import json
import logging
import random
import time
from pathlib import Path

import pytest

from megagpt.config.schema import Config, DataConfig, ModelConfig, OptimConfig, StageConfig
from megagpt.data.packed import permutation
from megagpt.data.pair_loader import PairLoader
from megagpt.data.pairs import Pair
from megagpt.data.tokenizer import train_tokenizer


def loader_of(folder: Path, documents: list[str | None], batch_size: int) -> PairLoader:
    """The loader of a pair of each document."""
    tokenizer = train_tokenizer(["to be or not to be"], 270)
    tokenizer.save(folder / "tokenizer.json")
    records = [
        {"query": f"q{number}", "positive": f"p{number}"} | ({"document": document} if document else {})
        for number, document in enumerate(documents)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    size = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "sequence_length": 32}
    return PairLoader(
        Config(
            model=ModelConfig(**size, vocab_size=tokenizer.vocab_size, head="embedding"),
            data=DataConfig(
                str(folder / "tokenizer.json"), pairs=(str(folder / "pairs.jsonl"),), split=(1.0, 0.0, 0.0)
            ),
            stage=StageConfig("embed"),
            optim=OptimConfig(global_batch_size=batch_size),
        )
    )


def by_looking_at_all(order: list[int], documents: list[str | None], size: int) -> list[list[int]]:
    """Every batch takes, in order, what is left of documents that it does not have."""
    batches, left = [], order
    while True:
        batch, used = [], set()
        for index in left:
            if len(batch) < size and (documents[index] is None or documents[index] not in used):
                batch.append(index)
                used.add(documents[index])
        if len(batch) < size:
            return batches
        batches.append(batch)
        left = [index for index in left if index not in batch]


DOCUMENTS = {
    "none": [None] * 50,
    "one large": ["large"] * 25 + [None] * 25,
    "two each": [f"file {number // 2}" for number in range(50)],
    "some of each": random.Random(0).choices([None, "a", "b", "c", "d"], k=50),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_batches_are_in_the_order_of_the_permutation(tmp_path, caplog, kind, size):
    caplog.set_level(logging.INFO, "megagpt")
    documents = DOCUMENTS[kind]
    loader = loader_of(tmp_path, documents, size)
    number = 0
    for epoch in range(2):
        expected = by_looking_at_all(permutation(50, loader.config.seed, epoch).tolist(), documents, size)
        for batch in expected:
            assert loader.batch(number * size).tolist() == batch
            number += 1
        left_out = 50 - size * len(expected)
        said = f"epoch {epoch} leaves out {left_out} of 50 pairs: of too few documents"
        assert (said in caplog.text) == (left_out >= size)
    assert loader.pairs_per_epoch % size == 0


def test_a_large_document_takes_no_longer_than_small_ones(tmp_path):
    count, seconds = 100_000, []
    for half in ([None] * (count // 2), ["large"] * (count // 2)):
        loader = loader_of(tmp_path, [None] * 48, 48)
        loader.pairs["train"] = [Pair("q", "p", (), document, "", (1, 2)) for document in half + [None] * (count // 2)]
        started = time.process_time()
        assert loader.pairs_per_epoch > 48 * 1000
        seconds.append(time.process_time() - started)
    assert seconds[1] < 5 * seconds[0]  # to look at all that are left takes about 30 times as long
