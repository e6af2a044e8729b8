"""A corpus small enough that a run passes through it several times."""

import random
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a tiny run on a corpus of its own, with warm-up, batch ramp, dropout and several epochs."""
    from megagpt.data.indexed import write_corpus
    from megagpt.data.tokenizer import train_tokenizer

    folder: Path = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    texts = [" ".join(words.choices(["to", "be", "or", "not", "that", "is"], k=40)) for _ in range(120)]
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save(folder / "tokenizer.json")
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in texts]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(folder / "text", [(lengths, np.concatenate(documents))], len(documents), about)
    return [
        "model=tiny",
        f"model.vocab_size={tokenizer.vocab_size}",
        "model.sequence_length=32",
        "model.num_layers=4",
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        f"data.tokenizer={folder}/tokenizer.json",
        f"data.corpora=[{{path: {folder}/text}}]",
        "data.split=[0.8,0.1,0.1]",
        "optim.lr=1e-3",
        "optim.precision=fp32",
        "optim.global_batch_size=16",
        "optim.ramp_start=8",
        f"optim.ramp_tokens={32 * 8 * 6}",
        f"optim.warmup_tokens={32 * 8 * 5}",
        f"optim.decay_tokens={32 * 16 * 18}",
        "checkpoint.interval=5",
        "stage.eval_interval=0",
        "stage.sample_prompts=[]",
    ]
