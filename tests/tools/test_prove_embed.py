"""The proof that stage embed learns: what both sides learn from, and at which rate."""

import gzip
import json
from pathlib import Path

import prove_embed
import pytest

from megagpt.data.pairs import read_pairs
from megagpt.errors import ConfigError
from megagpt.evaluate.retrieval import read_beir


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder of data sets with two abstracts, two claims, three scored pairs and two inferences."""
    folder = tmp_path / "data"
    abstracts = (
        {"_id": "1", "title": "Cats", "sentences": ["They sleep.", "They eat."]},
        {"_id": "2", "title": "", "sentences": ["Dogs bark."]},
    )
    claims = (
        {"_id": "7", "text": "Cats rest.", "split": "train"},
        {"_id": "8", "text": "Dogs talk.", "split": "validation"},
    )
    entailed = {"sentence1": "a man runs", "sentence2": "a man moves", "gold_label": "entailment"}
    write(folder / "scifact/corpus.jsonl.gz", lines(*abstracts))
    write(folder / "scifact/claims.jsonl.gz", lines(*claims))
    write(folder / "scifact/qrels.tsv", "query-id\tcorpus-id\tscore\tlabel\n7\t1\t1\tSUPPORT\n8\t2\t1\tSUPPORT\n")
    write(folder / "stsb/stsb-en-train.csv.gz", '"one, two","1, 2",4.5\nalike,the same,4.0\nnot,alike,3.9\n')
    write(folder / "stsb/stsb-en-test.csv.gz", "unseen,hidden,5.0\n")
    write(folder / "snli_sample/snli_dev_part.jsonl.gz", lines(entailed))
    write(folder / "snli_sample/snli_test_part.jsonl.gz", lines(entailed | {"gold_label": "neutral"}))
    return folder


def test_both_sides_learn_from_the_training_parts(data, tmp_path):
    prove_embed.write_sets(data, tmp_path / "out")
    pairs = [(pair.query, pair.positive) for pair in read_pairs([tmp_path / "out/pairs.jsonl"])]
    assert pairs == [
        ("Cats", "They sleep. They eat."),
        ("Cats rest.", "Cats They sleep. They eat."),
        ("one, two", "1, 2"),
        ("alike", "the same"),
        ("a man runs", "a man moves"),
    ]
    texts = [json.loads(line)["text"] for line in (tmp_path / "out/text.jsonl").read_text().splitlines()]
    abstracts = ["Cats They sleep. They eat.", " Dogs bark."]
    sentences = ["one, two", "1, 2", "alike", "the same", "not", "alike", *["a man runs", "a man moves"] * 2]
    assert sorted(texts) == sorted(abstracts + sentences)
    search = read_beir(tmp_path / "out/scifact", "test")
    assert search.judgements == {"8": {"2": 1}}


def test_the_rate_rises_and_falls_with_the_time():
    rates = [prove_embed.rate(part) for part in (0, 0.025, 0.05, 0.525, 1)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5.5e-4, 1e-4])


@pytest.mark.parametrize(
    ("change", "message"),
    [(["--minutes", "0"], "--minutes is 0; it must be above 0"), ([], "has no scifact/claims.jsonl.gz, stsb/stsb-en")],
)
def test_bad_arguments_are_refused_before_anything_is_written(data, tmp_path, monkeypatch, change, message):
    (data / "scifact/claims.jsonl.gz").unlink()
    (data / "stsb/stsb-en-test.csv.gz").unlink()
    arguments = ["--data", str(data), "--folder", str(tmp_path / "out"), *change]
    monkeypatch.setattr("sys.argv", ["prove_embed.py", *arguments])
    with pytest.raises(ConfigError, match=message):
        prove_embed.main()
    assert not (tmp_path / "out").exists()
