"""The benchmark of kernels on tiny problems and a clock that is not one: it checks, takes turns, computes, writes."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bench_kernels
import pytest
import torch
from bench_kernels import OURS, figures, measure, prepare, table, take_turns, verdict
from kernel_problems import PROBLEMS, Problem, Sizes, Work

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("plotly", reason="plotly is not installed")
ROOT = Path(__file__).parents[2]
CUDA = torch.cuda.is_available()
TINY = Sizes("cuda" if CUDA else "cpu", 16, 128, (16,), 16, 8, 128, 256, 48, 64, 2)
LONGER = replace(TINY, tokens=64, hidden=256, sequences=(32, 64), target_sequence=32)
LIMITS = {"copy": 1e9, "matmul": 1e12}


class Ticks:
    """A clock on which every call takes 1 ms, and takes 1000 bytes."""

    def seconds(self, run) -> float:
        run()
        return 1e-3

    def peak_bytes(self, run) -> int:
        run()
        return 1000


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(bench_kernels, "ROUNDS", (2, 2))


def square(x):
    return x * x


def problem(**changes) -> Problem:
    x = torch.linspace(1, 2, 8).bfloat16().requires_grad_()
    work = {"forward": Work(bytes=32, targets={"copy": (0.5, 0.9)}), "backward": Work(bytes=48)}
    made = Problem("op", "case", {"x": x}, {OURS: square, "torch": square}, square, work)
    return replace(made, **changes)


@pytest.mark.parametrize("op", PROBLEMS)
def test_every_op(op, tmp_path, capsys):
    records = bench_kernels.bench([op], TINY, Ticks(), LIMITS, tmp_path)
    (written,) = tmp_path.glob("kernels_*.json")
    report = json.loads(written.read_text())
    assert report["results"] == records and {"device", "versions", "date", "command", "limits"} <= set(report)
    assert records and not any("failed" in record for record in records)
    for record in records:
        assert record["error"] <= bench_kernels.TOLERANCE
        assert record["seconds"][OURS] == {"median": 1e-3, "quartiles": [1e-3, 1e-3]}
        assert record["rate"][OURS] > 0 and record["rounds"] == 2
        assert record["ratio"] and set(record["ratio"].values()) == {1.0}
    printed = capsys.readouterr().out
    assert all(f"| {record['case']} | {record['direction']} |" in printed for record in records)
    page = written.with_suffix(".html").read_text()
    assert page.count("Plotly.newPlot(") == len({(record["op"], record["direction"]) for record in records})


def test_attention_peers_and_targets():
    made = list(PROBLEMS["attention"](LONGER))
    (records,) = (
        measure(problem, Ticks(), LIMITS) for problem in made if problem.case == "causal, head dim 128, sequence 32"
    )
    assert [record["direction"] for record in records] == ["forward", "backward"]
    assert set(records[0]["ratio"]) | set(records[0]["missing"]) == {"flash", "cudnn", "flash-attn package"}
    assert [(t["against"], t["must"], t["aim"]) for t in records[0]["targets"]] == [
        ("flash", 1.4, None),
        ("cudnn", None, 1.0),
    ]
    verdicts = [target["verdict"] for target in records[1]["targets"]]
    assert verdicts == ["NOT REACHED", "aim reached" if "cudnn" in records[1]["ratio"] else "not measured"]
    dense = {problem.case for problem in made if problem.work["forward"].targets and "window" not in problem.case}
    assert dense == {"causal, head dim 64, sequence 32", "causal, head dim 128, sequence 32"}


def test_attention_work_counts_what_is_seen():
    chosen = {made.case: made for made in PROBLEMS["attention"](LONGER)}
    queries, keys = torch.arange(32)[:, None], torch.arange(32)
    seen = ((keys <= queries) & (queries - keys < 8)).sum().item()
    banded = chosen["window 8, head dim 128, sequence 32"]
    assert banded.work["forward"].flops == 4 * 2 * 256 * seen  # two sequences of 32 tokens
    assert banded.work["forward"].targets == {"megagpt dense": (5.0, round(32 * 33 / 2 / seen, 1))}
    full = chosen["full, head dim 64, sequence 64"].work
    assert full["forward"].flops == 4 * 256 * 64 * 64 and full["backward"].flops == 10 * 256 * 64 * 64


def test_targets_of_the_full_sizes():
    """At tiny sizes targets are those of the full ones, but for the sequence they speak of."""
    made = {p.case.split(",")[0]: p for op in ("norm", "cross_entropy") for p in PROBLEMS[op](TINY)}
    assert made["LayerNorm"].work["forward"].targets == {"copy": (0.85, 0.92)}
    assert made["LayerNorm"].work["backward"].targets == {"copy": (0.75, 0.85)}
    assert made["LayerNorm"].work["forward"].bytes == 2 * 2 * 16 * 128
    assert Sizes().target_sequence == 8192 and Sizes().window == 256 and Sizes().vocabulary == 51200


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x * x + 0.2,
        lambda x: x * x * float("nan"),
        lambda x: x.detach() * x,  # the right value, half the gradient
    ],
)
def test_wrong_results_are_not_timed(wrong):
    (record,) = measure(problem(solvers={OURS: wrong, "torch": square}), Ticks(), LIMITS)
    assert set(record) == {"op", "case", "error", "failed"}
    assert "WRONG" in table([record])


def test_a_peer_that_fails_is_named():
    def absent(x):
        raise ImportError("no such package\nat all")

    records = measure(problem(solvers={OURS: square, "torch": square, "peer": absent}), Ticks(), LIMITS)
    assert records[0]["missing"] == {"peer": "ImportError: no such package"}
    assert set(records[0]["ratio"]) == {"torch"}
    assert bench_kernels.absent(records) == "op: peer was not measured (ImportError: no such package)"
    with pytest.raises(ImportError):
        prepare(problem(solvers={OURS: absent}), lambda solver: lambda: solver(1))


def test_turns(monkeypatch):
    monkeypatch.setattr(bench_kernels, "ROUNDS", (4, 4))
    called, ticks = [], itertools.count(1)

    class Scripted:
        def seconds(self, run):
            run()
            return float(next(ticks))

    runs = {name: lambda name=name: called.append(name) for name in "abc"}
    times = take_turns(runs, Scripted())
    assert "".join(called) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert times == {"a": [4, 9, 11, 13], "b": [5, 7, 12, 14], "c": [6, 8, 10, 15]}


def test_figures():
    times = {OURS: [1.0, 2.0, 4.0], "flash": [3.0, 2.0, 16.0]}
    targets = {"flash": (2.0, 4.0), "copy": (0.6, None), "memory of flash": (8.0, None), "cudnn": (None, 1.0)}
    result = figures(Work(bytes=10**9, targets=targets), times, LIMITS, {OURS: 10, "flash": 90})
    assert result["ratio"] == {"flash": 3.0}  # the median of 3, 1 and 4
    assert result["fraction"] == {"copy": 0.5} and result["unit"] == "GB/s"
    assert result["rate"] == {OURS: 0.5, "flash": 1 / 3}
    verdicts = {target["against"]: target["verdict"] for target in result["targets"]}
    assert verdicts == {
        "flash": "must reached",
        "copy": "NOT REACHED",
        "memory of flash": "must reached",
        "cudnn": "not measured",
    }


@pytest.mark.parametrize(
    ("value", "must", "aim", "expected"),
    [
        (0.8, 0.85, 0.92, "NOT REACHED"),
        (0.85, 0.85, 0.92, "must reached"),
        (0.92, 0.85, 0.92, "aim reached"),
        (0.9, None, 1.0, "aim not reached"),
        (1.0, None, 1.0, "aim reached"),
        (1.5, 1.4, None, "must reached"),
        (None, 1.4, 1.0, "not measured"),
    ],
)
def test_verdict(value, must, aim, expected):
    assert verdict(value, must, aim) == expected


def test_a_run_cut_short_keeps_what_it_has(monkeypatch, tmp_path):
    def problems(sizes):
        yield problem()
        raise KeyboardInterrupt

    monkeypatch.setitem(PROBLEMS, "norm", problems)
    with pytest.raises(KeyboardInterrupt):
        bench_kernels.bench(["norm"], TINY, Ticks(), LIMITS, tmp_path)
    (written,) = tmp_path.glob("kernels_*.json")
    results = json.loads(written.read_text())["results"]
    assert [record["direction"] for record in results] == ["forward", "backward"]


def test_limits():
    limits = bench_kernels.measure_limits(Ticks(), "cpu", size=16, copied=64)
    assert limits == pytest.approx({"copy": 2 * 64 / 1e-3, "matmul": 2 * 16**3 / 1e-3})


@pytest.mark.skipif(CUDA, reason="speaks of machines without a GPU")
def test_without_a_gpu(tmp_path):
    command = [sys.executable, ROOT / "tools/bench_kernels.py", "--output", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode != 0 and not (tmp_path / "out").exists()
    assert "needs a CUDA device" in result.stderr and result.stdout == ""


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_cuda_clock():
    a = torch.randn(4096, 4096, device="cuda")
    clock = bench_kernels.CudaClock()
    assert 1e-6 < clock.seconds(lambda: a @ a) < 1
    assert clock.peak_bytes(lambda: a + 1) >= a.nbytes
