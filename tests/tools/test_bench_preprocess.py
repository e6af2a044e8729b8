"""The benchmark of preprocessing on some hundred kilobytes: equal work, honest medians, and a verdict."""

import json
import random

import bench_preprocess
import pytest

from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import DataError

COMMANDS = ("preprocess", "preprocess_by_tokenizers")
NAMES = (*COMMANDS, "encode_batch", "encode_batch_fast")
STAGES = ("reading", "parsing", "tokenizing", "writing", "joining")
REPEATS = 2


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the tool on some hundred kilobytes, with a tokenizer that is trained in no time."""
    texts = bench_preprocess.standard_library()[:8]
    monkeypatch.setattr(bench_preprocess, "standard_library", lambda: texts)
    monkeypatch.setattr(bench_preprocess, "train_tokenizer", lambda texts, _: train_tokenizer(texts, 300))
    monkeypatch.setattr(bench_preprocess, "REQUIRED", 0.0)
    monkeypatch.setattr(bench_preprocess, "REQUIRED_MB", 0.0)

    def call(*options: str) -> int:
        given = ["--mb", "0.5", "--repeats", str(REPEATS), "--cores", "1", "--output", str(tmp_path / "out/p.json")]
        monkeypatch.setattr("sys.argv", ["bench_preprocess.py", *given, *options])
        return bench_preprocess.main()

    return call


def test_report(run, tmp_path):
    assert run() == 0
    report = json.loads((tmp_path / "out/p.json").read_text())
    assert {"cpu", "python", "gigatoken", "tokenizers", "numpy", "date", "command"} <= set(report)
    assert 500_000 <= report["bytes"] < 1_000_000 and report["documents"] > 8 and report["cores"] == 1
    for by, rates in (("seconds", "mb_per_second_per_core"), ("cpu_seconds", "mb_per_cpu_second")):
        assert set(report[by]) == set(report[rates]) == set(NAMES)
        for name in NAMES:
            seconds = report[by][name]
            assert len(seconds) == REPEATS and min(seconds) > 0
            median = sum(seconds) / 2
            assert report[rates][name] == pytest.approx(report["bytes"] / 1e6 / median, rel=0.1)
    for ratio, rates in (
        ("ratio_by_tokenizers", report["mb_per_second_per_core"]),
        ("ratio_by_tokenizers_by_cpu_time", report["mb_per_cpu_second"]),
    ):
        assert report[ratio] == pytest.approx(rates["preprocess_by_tokenizers"] / rates["encode_batch"], rel=0.1)
    assert set(report["peak_mb"]) == set(report["cpu_ms_per_mb"]) == set(COMMANDS)
    for name in COMMANDS:
        assert 10 < report["peak_mb"][name]["worker"] < 2000 and 10 < report["peak_mb"][name]["parent"] < 2000
        assert set(report["cpu_ms_per_mb"][name]) == set(STAGES) and min(report["cpu_ms_per_mb"][name].values()) > 0
    fast, usual = (report["cpu_ms_per_mb"][name]["tokenizing"] for name in COMMANDS)
    assert fast < usual


@pytest.mark.parametrize("limit", ["REQUIRED", "REQUIRED_MB"])
def test_too_slow_fails_and_each_is_first_in_turn(run, limit, monkeypatch):
    order = []
    for name in ("ours", "direct"):
        inner = getattr(bench_preprocess, name)

        def noting(first, *rest, inner=inner):
            order.append({"gigatoken": NAMES[0], "tokenizers": NAMES[1]}.get(first, first))
            return inner(first, *rest)

        monkeypatch.setattr(bench_preprocess, name, noting)
    monkeypatch.setattr(bench_preprocess, limit, 1e9)
    assert run() == 1
    assert order == [*NAMES, *NAMES[1:], NAMES[0]]


def test_other_tokens_are_refused(run, monkeypatch, tmp_path):
    direct = bench_preprocess.direct
    monkeypatch.setattr(bench_preprocess, "direct", lambda *args: direct(*args)._replace(tokens=5))
    with pytest.raises(DataError, match=r"the methods give different numbers of tokens"):
        run()
    assert not (tmp_path / "out").exists()


def test_a_share_of_the_words_is_spelled_anew():
    text = "the cat sat on a mat " * 2000
    for share in (0.05, 0.5, 1.0):
        words = bench_preprocess.respelled(text, random.Random(1), share).split()
        new = sum(word != old for word, old in zip(words, text.split(), strict=True)) / len(words)
        assert new == pytest.approx(share, abs=0.02 if share < 1 else 0.2)


def test_memory(run, tmp_path, capsys):
    assert run("--memory-mb", "0.2", "0.4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" MB: parent ")[0] for line in lines] == ["0", "0"]
    for line in lines:
        parent, worker = (int(part.split()[-2]) for part in line.split(","))
        assert worker > 10 and 10 < parent < 2000
    assert not (tmp_path / "out").exists()
