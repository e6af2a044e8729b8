"""`megagpt evaluate` of embeddings: the tasks with an embedder without a model, broken files, and how work goes on."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from megagpt.cli import evaluate
from megagpt.data.scored_pairs import read_sentence_pairs
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate import text_embedder
from megagpt.evaluate.embedding_tasks import evaluate_embeddings
from tests.embedders import WordEmbedder


class Words(WordEmbedder):
    """Also remembers the labels."""

    def embed(self, texts, side, dimensions=None, label=""):
        vectors = super().embed(texts, side, dimensions)
        self.calls[-1] += (label,)
        return vectors


def write(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def settings(folder: Path, task: str, data: Path, *more: str):
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/manifest.json").write_text("{}")
    given = [f"task={task}", f"data={data}", f"output={folder}/out", f"checkpoint={folder}/model"]
    return evaluate.parse([*given, *more])


SENTENCES = [("a cat sat", "a cat sat", 5), ("a cat sat", "the dog sat", 2), ("x y z", "one two", 0), ("b c", "b d", 3)]


@pytest.fixture
def scored(tmp_path) -> Path:
    return write(tmp_path / "s.jsonl", *({"sentence1": a, "sentence2": b, "score": c} for a, b, c in SENTENCES))


def test_similarity_is_the_correlation_of_cosines(tmp_path, scored, capsys):
    embedder = Words()
    result = evaluate_embeddings(settings(tmp_path, "sts", scored), embedder)
    a, b = (Words().embed([pair[n] for pair in SENTENCES], "query") for n in (0, 1))
    cosines, scores = (a * b).sum(axis=1), [pair[2] for pair in SENTENCES]
    assert result["metrics"]["model"]["spearman"] == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-6)
    assert result["metrics"]["model"]["pearson"] == pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-6)
    assert {side for _, side, _ in embedder.calls} == {"query"}
    assert json.loads((tmp_path / "out/result.json").read_text()) == result
    evaluate.show_embeddings(result)
    assert f"spearman {result['metrics']['model']['spearman']:.4f}" in capsys.readouterr().out


def test_sides_and_dimensions(tmp_path, scored):
    for side, sides in (("document", ["document"] * 2), ("both", ["query", "document"])):
        embedder = Words()
        evaluate_embeddings(
            replace(settings(tmp_path, "sts", scored, f"side={side}", "dimensions=16"), output=tmp_path / side),
            embedder,
        )
        assert [called for _, called, _ in embedder.calls] == sides
        assert np.load(next((tmp_path / side / "embeddings").iterdir())).shape == (4, 16)
    with pytest.raises(ConfigError, match="dimensions is 33, but the model's vectors have only 32"):
        evaluate_embeddings(settings(tmp_path, "sts", scored, "dimensions=33"), Words())


def test_a_model_that_tells_nothing_apart_has_no_correlation(tmp_path, scored, capsys):
    class Constant(Words):
        def embed(self, texts, side, dimensions=None, label=""):
            return np.full((len(texts), 32), 0.5, np.float32)

    result = evaluate_embeddings(settings(tmp_path, "sts", scored), Constant())
    assert result["metrics"]["model"] == {"spearman": None, "pearson": None}
    evaluate.show_embeddings(result)
    assert "spearman undefined" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["s.csv", "s.tsv", "s.csv.gz", "s.tsv.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_tables_of_scored_pairs(tmp_path, scored, name, header):
    between = "\t" if ".tsv" in name else ","
    rows = [[a, b, str(score)] for a, b, score in SENTENCES]
    if header:
        rows = [["index", "sentence2", "score", "sentence1"], *([str(i), b, c, a] for i, (a, b, c) in enumerate(rows))]
    text = "".join(between.join(row) + "\n" for row in rows).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read_sentence_pairs(path) == read_sentence_pairs(scored)


def test_quotes_of_tables(tmp_path):
    (tmp_path / "s.csv").write_text('"a, b",c,1\nd,"say ""e""",2\n')
    assert read_sentence_pairs(tmp_path / "s.csv")[1].sentence2 == 'say "e"'
    (tmp_path / "s.tsv").write_text('"a\tc"\t1\nd\te\t2\n')
    assert read_sentence_pairs(tmp_path / "s.tsv")[0].sentence1 == '"a'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "a,b,1\nc,d\n", r"s\.csv:2: 2 columns instead of sentence1, sentence2, score"),
        ("s.csv", "a,b,1\nc,d,much\n", r"s\.csv:2: score is 'much', not a number"),
        ("s.csv", "a,b,1\nc,d,nan\n", r"s\.csv:2: score is 'nan', not a number"),
        ("s.csv", "a,b,1\nc, ,2\n", r"s\.csv:2: sentence2 is empty"),
        ("s.jsonl", '{"sentence1": "a", "score": 1}\n', r"s\.jsonl:1: no sentence2"),
        ("s.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}\n', r"s\.jsonl:1: score must be a number"),
        ("s.csv", "a,b,1\n", "holds 1 scored pairs; a correlation needs at least 2"),
        ("s.csv", "a,b,1\nc,d,1\n", "all 2 scores are equal"),
        ("s.txt", "", r"pairs are read from JSON lines"),
        ("s.csv.gz", "no gzip", "cannot read scored pairs"),
    ],
)
def test_broken_scored_pairs_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        evaluate_embeddings(settings(tmp_path, "sts", tmp_path / name), Words())


@pytest.fixture
def beir(tmp_path) -> Path:
    folder = tmp_path / "beir"
    animals = ["cat", "dog", "cow", "hen"]
    documents = [{"_id": f"d{i}", "title": f"the {a}", "text": f"all about one {a}"} for i, a in enumerate(animals)]
    write(folder / "corpus.jsonl", *documents, {"_id": "d9", "text": "weather"})
    write(folder / "queries.jsonl", *({"_id": f"q{i}", "text": f"one {a}"} for i, a in enumerate(animals)))
    (folder / "qrels").mkdir()
    rows = [*(f"q{i}\td{i}\t1" for i in range(3)), "q0\td9\t2"]
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    return folder


def test_retrieval_on_a_beir_folder(tmp_path, beir, capsys):
    embedder = Words()
    result = evaluate_embeddings(settings(tmp_path, "retrieval", beir, "k=[1,5]"), embedder)
    assert (result["data"]["documents"], result["data"]["queries"]) == (5, 3)
    assert sorted(result["data"]["files"]) == ["corpus.jsonl", "queries.jsonl", "test.tsv"]
    assert embedder.calls == [(3, "query", "queries"), (5, "document", "documents")]
    model, words = result["metrics"]["model"], result["metrics"]["bm25"]
    assert (model["mrr_at_10"], model["recall_at_1"], model["recall_at_5"]) == pytest.approx((1, 2.5 / 3, 1))
    assert words["recall_at_5"] == pytest.approx(2.5 / 3)  # no word leads to the weather
    evaluate.show_embeddings(result)
    assert "bm25" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("corpus.jsonl", '{"_id": "d0", "text": "x"}', r"corpus\.jsonl:6: the id 'd0' occurs twice"),
        ("corpus.jsonl", '{"_id": "d7", "text": " "}', r"corpus\.jsonl:6: record 'd7' has no text"),
        ("queries.jsonl", '{"text": "x"}', r"queries\.jsonl:5: a record needs \"_id\""),
        ("qrels/test.tsv", "q8\td1\t1", r"test\.tsv:6: query 'q8' is not in"),
        ("qrels/test.tsv", "q0\td0\t1", r"test\.tsv:6: query 'q0' and document 'd0' are judged twice"),
        ("qrels/test.tsv", "q0 d0 1", r"test\.tsv:6: a judgement is"),
        ("qrels/test.tsv", "q0\td0\thigh", r"test\.tsv:6: a judgement is"),
    ],
)
def test_broken_beir_folders_are_refused(tmp_path, beir, name, line, message):
    with (beir / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        evaluate_embeddings(settings(tmp_path, "retrieval", beir), Words())


def test_a_folder_that_is_none_of_beir_is_refused(tmp_path, beir):
    with pytest.raises(DataError, match=r"has no qrels/dev\.tsv: a BEIR folder holds"):
        evaluate_embeddings(settings(tmp_path, "retrieval", beir, "split=dev"), Words())


def test_code_search_beside_bm25_and_chance(tmp_path, capsys):
    rng = np.random.default_rng(0)
    names = [f"w{number}" for number in range(400)]
    texts = [(" ".join(words), "def f " + " ".join(words[:2])) for words in rng.choice(names, (30, 5))]
    records = [{"query": query, "positive": positive} for query, positive in texts]
    data = write(tmp_path / "pairs.jsonl", *records, records[0])
    embedder = Words()
    result = evaluate_embeddings(settings(tmp_path, "code_search", data, "candidates=20"), embedder)
    assert {(side, label) for _, side, label in embedder.calls} == {("query", "queries"), ("document", "positives")}
    metrics = result["metrics"]
    # Every positive shares words with its own query alone, and the repeated pair is no competitor of itself.
    assert metrics["bm25"]["mrr"] > 0.95
    assert metrics["bm25"]["mrr"] > metrics["model"]["mrr"] > 3 * metrics["chance"]["mrr"]
    assert result["candidates"] == 20
    evaluate.show_embeddings(result)
    assert "each query searched 20 candidates" in capsys.readouterr().out


KINDS = ("down", "up")
LABELLED = [{"text": f"{kind} {word}", "label": KINDS.index(kind)} for word in "abcdefghij" for kind in KINDS]


def test_a_probe_reads_labels_out_of_vectors(tmp_path):
    data = write(tmp_path / "train.jsonl", *LABELLED, {"text": "up k", "label": 1})
    test = write(tmp_path / "test.jsonl", *({"text": f"down {word}", "label": 0} for word in "klm"))
    result = evaluate_embeddings(settings(tmp_path, "probe", data, f"test={test}"), Words())
    assert result["metrics"]["model"] == {"accuracy": 1, "macro_f1": 1}
    assert result["metrics"]["majority"] == {"accuracy": 0, "macro_f1": 0}
    assert (result["data"]["train"], result["data"]["test"], result["labels"]) == (21, 3, {"0": 10, "1": 11})

    more = ["test_share=0.3", "folds=3"]
    one = evaluate_embeddings(replace(settings(tmp_path, "probe", data, *more), output=tmp_path / "one"), Words())
    assert (one["data"]["train"], one["data"]["test"]) == (14, 7)
    assert one["metrics"]["model"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([{"text": "a", "label": 1.5}], None, r"train\.jsonl:1: the field \"label\" must be"),
        ([{"text": "", "label": 1}], None, r"train\.jsonl:1: the field \"text\" has no text"),
        ([], None, "holds no labelled text"),
        ([{"text": "a", "label": 1}] * 9, None, "only the label '1'"),
        ([*LABELLED, {"text": "a", "label": 2}], None, "cannot be divided with test_share=0.2"),
        ([*LABELLED, {"text": "a", "label": 2}], LABELLED, "1 training texts with the label '2', too few for 10 parts"),
        (LABELLED, [{"text": "a", "label": "new"}], "labels that the training texts do not have: new"),
    ],
)
def test_broken_labelled_texts_are_refused(tmp_path, train, test, message):
    more = [] if test is None else [f"test={write(tmp_path / 'test.jsonl', *test)}"]
    with pytest.raises(DataError, match=message):
        evaluate_embeddings(settings(tmp_path, "probe", write(tmp_path / "train.jsonl", *train), *more), Words())


def test_interrupted_work_goes_on(tmp_path, scored, monkeypatch):
    class Interrupted(Words):
        def embed(self, texts, side, dimensions=None, label=""):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().embed(texts, side, dimensions, label)

    monkeypatch.setattr(text_embedder, "PIECE", 2)
    given, whole = settings(tmp_path, "sts", scored), Words()
    expected = evaluate_embeddings(replace(given, output=tmp_path / "whole"), whole)["metrics"]
    with pytest.raises(KeyboardInterrupt):
        evaluate_embeddings(given, Interrupted())
    embedder = Words()
    assert evaluate_embeddings(given, embedder)["metrics"] == expected
    assert [label for _, _, label in embedder.calls] == ["second_sentences 2/2"]
    assert len(whole.calls) == 4


def test_another_evaluation_in_the_folder_is_refused(tmp_path, scored):
    evaluate_embeddings(settings(tmp_path, "sts", scored), Words())
    with pytest.raises(ConfigError, match="holds an evaluation with different dimensions, side: choose another output"):
        evaluate_embeddings(settings(tmp_path, "sts", scored, "side=both", "dimensions=3"), Words())


def test_broken_vectors_are_refused(tmp_path, scored):
    class Broken(Words):
        def embed(self, texts, side, dimensions=None, label=""):
            return np.full((len(texts), 32), np.nan, np.float32)

    with pytest.raises(DataError, match="vectors of first_sentences hold NaN"):
        evaluate_embeddings(settings(tmp_path, "sts", scored), Broken())
    evaluate_embeddings(settings(tmp_path, "sts", scored), Words())
    next((tmp_path / "out/embeddings").glob("first*")).write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read .*first_sentences.*remove it"):
        evaluate_embeddings(settings(tmp_path, "sts", scored), Words())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=sts"], r"either checkpoint=\.\.\., a model to evaluate, or sentence_transformer"),
        (["task=sts", "checkpoint=a", "sentence_transformer=b"], r"either checkpoint="),
        (["task=sts", "checkpoint=a", "side=left"], "side is 'left'"),
        (["task=sts", "checkpoint=a", "completions=b"], "unknown key 'completions'"),
        (["task=retrieval", "checkpoint=a", "k=0"], r"k is \[0\]"),
        (["task=code_search", "checkpoint=a", "candidates=0"], "candidates is 0; it must be at least 1"),
        (["task=probe", "checkpoint=a", "test_share=1"], "test_share is 1.0; it must be between 0 and 1"),
        (["task=probe", "checkpoint=a", "folds=1"], "folds is 1"),
        (["task=stsb", "checkpoint=a"], "task is 'stsb'; it must be one of .*sts, retrieval, code_search, probe"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.parse([*arguments, "data=set", "output=out"])
