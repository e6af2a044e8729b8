"""BLiMP beside n-grams: probabilities that are some, and figures of both sides."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import blimp_beside_ngrams
from blimp_beside_ngrams import NGramLM

from megagpt.config.schema import Config, CorpusConfig, ModelConfig, OptimConfig
from megagpt.data.indexed import write_corpus
from megagpt.data.tokenizer import train_tokenizer
from tests.runs import save_random_run

TEXTS = ["the cat sat on the mat and the dog sat on the cat.", "the dog saw the cat on the mat."] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 280)


def test_n_grams_are_a_distribution_that_knows_what_it_has_seen(tokenizer):
    end = tokenizer.end_of_text_id
    lm = NGramLM(tokenizer, [np.array([end, *tokenizer.encode(text)]) for text in TEXTS], 3)
    context = [end, *tokenizer.encode("the cat sat")]
    scores = lm._loglikelihood_tokens([(None, context, [token]) for token in range(tokenizer.vocab_size)])
    assert sum(math.exp(score) for score, _ in scores) == pytest.approx(1)
    seen, unseen = (
        lm._loglikelihood_tokens([(None, context, tokenizer.encode(text))])[0][0] for text in (" on", " the")
    )
    assert seen > unseen
    together = lm._loglikelihood_tokens([(None, context, tokenizer.encode(" on the"))])[0][0]
    later = lm._loglikelihood_tokens([(None, [*context, *tokenizer.encode(" on")], tokenizer.encode(" the"))])[0][0]
    assert together == pytest.approx(seen + later)


def test_both_sides_are_measured(tokenizer, tmp_path, data_dir, monkeypatch, capsys):
    documents = [np.array([*tokenizer.encode(text), tokenizer.end_of_text_id], np.int32) for text in TEXTS]
    lengths = np.array([len(document) for document in documents], np.int32)
    about = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    write_corpus(tmp_path / "text", [(lengths, np.concatenate(documents))], len(documents), about)
    size = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "sequence_length": 128}
    save_random_run(tmp_path / "run", Config(model=ModelConfig(**size), optim=OptimConfig(precision="fp32")), tokenizer)
    monkeypatch.setattr(
        blimp_beside_ngrams,
        "training_documents",
        lambda config, tokenizer, most, read=blimp_beside_ngrams.training_documents: read(
            _with_corpus(config, tmp_path / "text"), tokenizer, most
        ),
    )
    arguments = ["--checkpoint", tmp_path / "run", "--data", data_dir, "--limit", 5, "--output", tmp_path / "out.json"]
    monkeypatch.setattr(sys, "argv", ["blimp_beside_ngrams.py", *map(str, arguments)])
    blimp_beside_ngrams.main()
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["pairs"] == 5 * len(result["model"]["tasks"]) == 40
    assert result["tokens_of_ngrams"] > 0.9 * lengths.sum()
    for name in ("model", "3-grams"):
        assert result[name]["accuracy"] == pytest.approx(np.mean(list(result[name]["tasks"].values())))
        assert f"{name} {result[name]['accuracy']:.3f}" in out


def _with_corpus(config: Config, prefix: Path) -> Config:
    return replace(config, data=replace(config.data, corpora=(CorpusConfig(str(prefix)),)))
