"""The benchmark of training compares the same model, refuses to compare different ones, and computes what it says."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from megagpt.errors import MegaGPTError

ROOT = Path(__file__).parents[2]
TINY = [
    "experiment=demo",
    "model=demo",
    "optim=demo",
    "model.num_layers=2",
    "model.hidden_size=32",
    "model.sequence_length=16",
    "model.vocab_size=128",
    "model.init_std=0.2",  # so that every weight matters
    "parallel.micro_batch_size=2",
]


@pytest.fixture
def bench(monkeypatch):
    threads = torch.get_num_threads()
    tool = runpy.run_path(str(ROOT / "tools/bench_train.py"))
    monkeypatch.setitem(tool["SHAPES"], "demo", TINY)
    monkeypatch.setitem(tool["configuration"].__globals__, "peak_memories", lambda names, *_: dict.fromkeys(names, 1.0))
    yield tool
    torch.set_num_threads(threads)


def run(bench, monkeypatch, tmp_path) -> int:
    arguments = ["bench_train.py", "--shapes", "demo", "--rounds", "3", "--warmup", "1", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--precision", "fp32", "--threads", "1"])
    return bench["main"]()


def test_report(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(bench["REQUIRED"], "cpu", ("transformers", 0.0))
    assert run(bench, monkeypatch, tmp_path) == 0
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert {"device", "torch", "transformers", "date", "command", "threads"} <= set(report)
    result = report["results"]["demo fp32"]
    for figures in result["contestants"].values():
        tokens = figures["tokens_per_second"] * figures["step_seconds"]["median"]
        assert tokens == pytest.approx(2 * 16, rel=1e-2)
        assert figures["peak_memory_gib"] == 1.0
    assert result["rounds"] == 3
    assert set(result["ratio"]) == set(result["contestants"]) - {"megagpt"}


def test_too_slow_fails(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(bench["REQUIRED"], "cpu", ("transformers", 1e9))
    assert run(bench, monkeypatch, tmp_path) == 1


@pytest.mark.parametrize("name", ["transformer.h.1.attn.c_attn.weight", "transformer.wpe.weight"])
def test_other_weights_are_refused(bench, monkeypatch, tmp_path, name):
    scope = bench["configuration"].__globals__
    mapping = scope["transformers_weights"]
    wrong = lambda engine: mapping(engine) | {name: mapping(engine)[name].flip(0)}  # noqa: E731
    monkeypatch.setitem(scope, "transformers_weights", wrong)
    with pytest.raises(MegaGPTError, match="not the same model"):
        run(bench, monkeypatch, tmp_path)
    assert not list(tmp_path.iterdir())


def test_ratio_is_the_median_over_rounds(bench):
    seconds = {"megagpt": [1.0, 2.0, 4.0], "slower": [3.0, 4.0, 4.0]}
    assert bench["ratios"](seconds) == {"slower": 2.0}
