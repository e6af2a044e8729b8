"""The benchmark of the corpus on some ten kilobytes: honest rates and ratios, equal verdicts, and a judgement."""

import json
import shutil

import bench_corpus
import corpus_steps
import pytest
from corpus_steps import Step

from megagpt.data.corpus.duplicates.tables import read_rows
from megagpt.errors import MegaGPTError

pytest.importorskip("magic", exc_type=ImportError)

REPEATS = 2
BESIDE = {
    "words",
    "language, fastText",
    "c4",
    "gopher quality",
    "gopher repetition",
    "fineweb",
    "pii",
    "exact hashes",
    "minhash signatures",
    "decontamination count",
    "read WET",
}
ALONE = {"language, CLD2", "line rules", "quality, hashed words", "write shard", "read shard"}


@pytest.fixture
def run(monkeypatch, tmp_path, data_dir, tmp_path_factory):
    """Runs the tool on a little text with measurements of no length, and a model of languages that is made once."""
    monkeypatch.setattr(bench_corpus, "SHORTEST", 0.0)
    shared = tmp_path_factory.getbasetemp() / "languages.bin"

    def make_language_model(data, path):
        if not shared.exists():
            corpus_steps.make_language_model(data, shared, bucket=20_000)
        shutil.copy(shared, path)

    monkeypatch.setattr(bench_corpus, "make_language_model", make_language_model)

    def call() -> dict:
        output = tmp_path / "out/b.json"
        options = ["--data", str(data_dir), "--mb", "0.06", "--repeats", str(REPEATS), "--output", str(output)]
        options += ["--search-documents", "2000"]
        monkeypatch.setattr("sys.argv", ["bench_corpus.py", *options])
        bench_corpus.main()
        return json.loads(output.read_text())

    return call


@pytest.mark.slow
@pytest.mark.thorough
def test_report(run, monkeypatch):
    monkeypatch.setattr(bench_corpus, "REQUIRED", 0.0)
    report = run()
    assert {"cpu", "python", "datatrove", "spacy", "date", "command"} <= set(report)
    assert set(report["steps"]) == BESIDE | ALONE
    assert set(report["chains"]) == set(report["verdicts"]) == {"fineweb", "gopher"}
    for name, found in (report["steps"] | report["chains"]).items():
        sides = {"megagpt"} if name in ALONE else {"megagpt", "datatrove"}
        for seconds, rate, ratio in (
            ("seconds", "mb_per_second", "ratio"),
            ("cpu_seconds", "mb_per_cpu_second", "ratio_by_cpu_time"),
        ):
            assert set(found[seconds]) == set(found[rate]) == sides
            medians = {side: sum(values) / REPEATS for side, values in found[seconds].items()}
            assert all(len(values) == REPEATS for values in found[seconds].values())
            if min(medians.values()) > 0.002:  # which digits of it are written says enough
                for side, median in medians.items():
                    assert found[rate][side] == pytest.approx(found["bytes"] / 1e6 / median, rel=0.1)
            if name in ALONE:
                assert found[ratio] is None
            elif min(medians.values()) > 0.002:
                assert found[ratio] == pytest.approx(medians["datatrove"] / medians["megagpt"], rel=0.2, abs=0.1)
    rates = report["search"]["documents_per_cpu_second"]
    assert report["search"]["documents"] == 2000 and min(rates.values()) > 0
    assert set(rates) == {"exact", "match", "components", "split", "cluster"}
    for found in report["verdicts"].values():
        assert found["different"] == 0 and 0 < found["kept"] < found["documents"]


def test_slow_chains_and_other_verdicts_fail(monkeypatch, tmp_path):
    good = {"chains": {"a": {"ratio": 30.0}}, "verdicts": {"a": {"different": 0, "examples": []}}}
    slow = good | {"chains": {"a": {"ratio": 19.9}, "b": {"ratio": 20.0}}}
    other = good | {"verdicts": {"a": {"different": 1, "examples": ["http://x.org"]}}}
    output = tmp_path / "b.json"
    monkeypatch.setattr("sys.argv", ["bench_corpus.py", "--data", str(tmp_path), "--output", str(output)])
    for result, message in (
        (good, None),
        (slow, r"less than 20 times as fast .*\{'a': 19.9\}"),
        (other, "keep other documents or text.*http://x.org"),
    ):
        monkeypatch.setattr(bench_corpus, "measure", lambda *_, result=result: result)
        output.unlink(missing_ok=True)
        if message is None:
            bench_corpus.main()
        else:
            with pytest.raises(MegaGPTError, match=message):
                bench_corpus.main()
        assert json.loads(output.read_text())["chains"] == result["chains"]  # a failure, too, leaves its figures


def test_both_are_first_in_turn_and_the_first_call_of_each_does_not_count(monkeypatch):
    monkeypatch.setattr(bench_corpus, "SHORTEST", 0.0)
    order = []
    found = bench_corpus.compare(Step("x", lambda: order.append("o"), lambda: order.append("t")), 1_000_000, 3)
    assert "".join(order) == "ot" + "ot" + "to" + "ot"
    assert found["bytes"] == 1_000_000 and all(len(values) == 3 for values in found["seconds"].values())


def test_other_verdicts_are_found(monkeypatch, tmp_path):
    """A document that one side alone keeps, and one of which it keeps other text, are named."""

    class Kept:
        text = "ours"

    monkeypatch.setattr(bench_corpus, "run_ours", lambda *_: {"same": Kept, "text": Kept, "here": Kept})
    monkeypatch.setattr(bench_corpus, "run_theirs", lambda *_: {"same": "ours", "text": "theirs", "there": "theirs"})
    monkeypatch.setattr(bench_corpus, "read_ours", lambda *_: iter(range(7)))
    monkeypatch.setattr(bench_corpus, "their_chain", lambda *_: [])
    found = bench_corpus.verdicts(tmp_path, "gopher", tmp_path)
    assert found["documents"] == 7 and found["kept"] == 3
    assert found["different"] == 3 and found["examples"] == ["here", "text", "there"]


def test_the_search_that_is_timed_finds_what_was_made_alike(tmp_path):
    documents = 3000
    corpus_steps.search_seconds(tmp_path, documents)
    for name in ("repeated", "near"):
        found = sum(len(read_rows(path, 2)) for path in (tmp_path / name).glob("*.u64"))
        assert 0.08 * documents < found < 0.12 * documents
