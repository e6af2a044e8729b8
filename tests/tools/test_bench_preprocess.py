"""The benchmark of preprocessing on some hundred kilobytes: equal work, honest ratios, and a verdict."""

import json

import bench_preprocess
import pytest

from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import DataError

NAMES = ("preprocess", "encode_batch", "encode_batch_fast")
REPEATS = 2


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the tool with a tokenizer that is trained in no time."""
    write_input = bench_preprocess.write_input
    monkeypatch.setattr(bench_preprocess, "write_input", lambda path, size: write_input(path, min(size, 0.4)))
    monkeypatch.setattr(bench_preprocess, "train_tokenizer", lambda texts, _: train_tokenizer(texts, 300))

    def call(*options: str) -> int:
        given = ["--mb", "0.3", "--repeats", str(REPEATS), "--cores", "1", "--output", str(tmp_path / "out/p.json")]
        monkeypatch.setattr("sys.argv", ["bench_preprocess.py", *given, *options])
        return bench_preprocess.main()

    return call


def test_report(run, monkeypatch, tmp_path):
    monkeypatch.setattr(bench_preprocess, "REQUIRED", 0.0)
    assert run() == 0
    report = json.loads((tmp_path / "out/p.json").read_text())
    assert {"cpu", "python", "tokenizers", "numpy", "date", "command"} <= set(report)
    assert 300_000 <= report["bytes"] < 1_000_000 and report["documents"] > 1 and report["cores"] == 1
    for by, rates in (("seconds", "mb_per_second_per_core"), ("cpu_seconds", "mb_per_cpu_second")):
        assert set(report[by]) == set(report[rates]) == set(NAMES)
        for name in NAMES:
            seconds = report[by][name]
            assert len(seconds) == REPEATS and min(seconds) > 0
            median = sum(seconds) / 2
            assert report[rates][name] == pytest.approx(report["bytes"] / 1e6 / median, rel=0.1)
    rates, cpu_rates = report["mb_per_second_per_core"], report["mb_per_cpu_second"]
    for ratio, (ours, theirs) in {
        "ratio": (rates["preprocess"], rates["encode_batch"]),
        "ratio_by_cpu_time": (cpu_rates["preprocess"], cpu_rates["encode_batch"]),
        "ratio_to_encode_batch_fast": (rates["preprocess"], rates["encode_batch_fast"]),
        "ratio_to_encode_batch_fast_by_cpu_time": (cpu_rates["preprocess"], cpu_rates["encode_batch_fast"]),
    }.items():
        assert report[ratio] == pytest.approx(ours / theirs, abs=0.02)


def test_too_slow_fails_and_each_is_first_in_turn(run, monkeypatch):
    order = []
    for name in ("ours", "direct"):
        inner = getattr(bench_preprocess, name)

        def noting(*arguments, inner=inner):
            order.append(arguments[0] if isinstance(arguments[0], str) else "preprocess")
            return inner(*arguments)

        monkeypatch.setattr(bench_preprocess, name, noting)
    monkeypatch.setattr(bench_preprocess, "REQUIRED", 1e9)
    assert run() == 1
    assert order == [*NAMES, *NAMES[1:], NAMES[0]]


def test_other_tokens_are_refused(run, monkeypatch, tmp_path):
    ours = bench_preprocess.ours
    monkeypatch.setattr(bench_preprocess, "ours", lambda *args: (*ours(*args)[:2], ours(*args)[2] + 1))
    with pytest.raises(DataError, match=r"encode_batch gives \d+ tokens, and another \d+"):
        run()
    assert not (tmp_path / "out").exists()


def test_memory(run, monkeypatch, tmp_path, capsys):
    assert run("--memory-mb", "0.2", "0.4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" MB: parent ")[0] for line in lines] == ["0", "0"]
    for line in lines:
        parent, worker = (int(part.split()[-2]) for part in line.split(","))
        assert worker > 10 and 10 < parent < 2000
    assert not (tmp_path / "out").exists()
