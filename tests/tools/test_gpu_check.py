"""The check for a lent GPU: parts are bounded, results come as they are made, and nothing is said that was not seen."""

import gzip
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import gpu_check
import gpu_parts
import pytest
import step_profile
import torch
from gpu_check import PARTS, Part

from megagpt.errors import MegaGPTError

CUDA = torch.cuda.is_available()
WORKER = """
import argparse, json, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("part")
parser.add_argument("cases", nargs="+")
for name in ("device", "seconds", "work", "output", "results"):
    parser.add_argument("--" + name)
options = parser.parse_args()
for case in options.cases:
    print("case", case, flush=True)
    if case == "hang":
        time.sleep(600)
    if case == "crash":
        print("Aborted: illegal memory access", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    bad = case == "bad"
    result = {"result": "failed", "why": "wrong"} if bad else {"result": "measured", "figures": {"speed": 1234.5678}}
    with open(options.results, "a") as file:
        file.write(json.dumps({"case": case, "seconds": 0.5} | result) + "\\n")
    if bad:
        sys.exit(3)
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs parts of the given cases by a worker that does what a case's name says; returns results by case."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)

    def run(*parts: tuple[str, ...], seconds: float = 60, case_seconds: float = 30) -> dict[str, tuple[str, str]]:
        made = [Part(f"part{number}", 1, case_seconds, cases) for number, cases in enumerate(parts)]
        options = Namespace(device="cpu", output=tmp_path / "out", minutes=seconds / 60, commit="abc")
        records = gpu_check.check(options, made, worker)
        lines = [json.loads(line) for line in (tmp_path / "out/gpu_check.jsonl").read_text().splitlines()]
        assert lines[1:] == records and lines[0]["commit"] == "abc"
        return {record["case"]: (record["result"], record.get("why", "")) for record in records}

    return run


def test_a_case_that_fails_crashes_or_hangs_costs_itself_alone(check, tmp_path):
    found = check(("one", "bad", "two", "crash", "three", "hang", "four"), ("five",), case_seconds=4)
    assert found["bad"] == ("failed", "wrong")
    assert found["crash"] == ("failed", "the process ended with status -9: Aborted: illegal memory access")
    assert found["hang"] == ("failed", "no result within 4 s")
    assert [case for case, (result, _) in found.items() if result == "measured"] == [
        "one",
        "two",
        "three",
        "four",
        "five",
    ]
    table = (tmp_path / "out/gpu_check.md").read_text()
    assert (
        "| part0 | one | measured | 0.5 | speed 1235 |" in table and "| part0 | bad | failed | 0.5 | wrong |" in table
    )
    assert "rehearsal" in table and "- commit: abc" in table
    assert "case three" in (tmp_path / "out/gpu_check.log").read_text()


def test_a_part_ends_in_time_and_leaves_the_rest_unmeasured(check):
    began = time.monotonic()
    found = check(("one", "hang", "two"), ("three",), seconds=10)
    assert time.monotonic() - began < 30
    assert found["hang"] == found["two"] == ("not measured", "no time was left")
    assert found["one"][0] == "measured"
    assert found["three"][0] == "measured"


def test_lines_are_read_when_they_are_whole(tmp_path):
    path = tmp_path / "lines"
    assert gpu_check.read_new(path, 0) == ([], 0)
    path.write_text('{"a": 1}\n{"a"')
    assert gpu_check.read_new(path, 0) == ([{"a": 1}], 9)
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert gpu_check.read_new(path, 9) == ([{"a": 2}], 18)


@pytest.mark.skipif(CUDA, reason="speaks of machines without a GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_no_error(tmp_path):
    command = [sys.executable, gpu_check.ROOT / "tools/gpu_check.py", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about, *records = [json.loads(line) for line in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    assert [(r["part"], r["case"]) for r in records] == [(part.name, case) for part in PARTS for case in part.cases]
    assert {(r["result"], r["why"]) for r in records} == {("not measured", "there is no CUDA device")}
    assert about["gpu"] == "none" and about["torch"] == torch.__version__ and about["minutes"] == 8
    assert about["command"].startswith("python tools/gpu_check.py")
    assert f"{len(records)} not measured" in done.stdout


@pytest.mark.slow
@pytest.mark.thorough
def test_every_part_can_be_rehearsed(tmp_path):
    """Every case runs on the CPU at tiny sizes."""
    options = Namespace(device="cpu", output=tmp_path, minutes=60, commit=None)
    patient = [Part(part.name, part.minutes, 1200, part.cases) for part in PARTS]
    records = gpu_check.check(options, patient)
    assert {r["case"]: r.get("why") for r in records if r["result"] != "measured"} == {}
    assert sorted((r["part"], r["case"]) for r in records) == sorted((p.name, c) for p in PARTS for c in p.cases)
    figures = {(r["part"], r["case"]): r["figures"] for r in records}
    attention = figures["kernels", "attention: causal, head dim 128"]
    for direction in ("forward", "backward"):
        assert attention[f"{direction} ms"] > 0
        assert f"{direction} flash / ours" in attention or f"{direction} flash" in attention
        assert f"{direction} cudnn / ours" in attention or f"{direction} cudnn" in attention
    assert figures["training", "gpt3_125m"]["transformers / ours"] > 0
    assert figures["generation", "gpt3_125m"]["batch 32 tokens/s"] > 0
    assert figures["stages", "ppo"]["steps"] == 4
    assert (tmp_path / "training_step.json.gz").stat().st_size > 0


def test_what_pytest_says_is_counted():
    plain = (
        "tests/kernels/test_a.py::test_b[a b] PASSED   [ 50%]\ntests/kernels/test_a.py::test_c SKIPPED (no) [100%]\n"
    )
    assert gpu_parts.verdicts(plain, stopped=False) == {"passed": 1, "skipped": 1}
    many = (
        "[gw0] [  5%] PASSED tests/kernels/test_a.py::test_b[x] \n[gw1] [ 10%] PASSED tests/kernels/test_a.py::test_c\n"
    )
    assert gpu_parts.verdicts(many, stopped=True) == {
        "passed": 2,
        "skipped": 0,
        "note": "stopped when its time was over",
    }
    with pytest.raises(MegaGPTError, match=r"2 passed, 1 failed: tests/kernels/test_a\.py::test_d"):
        gpu_parts.verdicts(many + "[gw0] [ 15%] FAILED tests/kernels/test_a.py::test_d \n", stopped=False)
    with pytest.raises(MegaGPTError, match="0 passed, 0 failed: no module named pytest"):
        gpu_parts.verdicts("no module named pytest", stopped=False)


def event(category: str, name: str, begin: float, duration: float) -> dict:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": duration}


def test_a_profile_is_summed_up():
    events = [
        event("kernel", "void gemm<128, true>(float*)", 1000, 600),
        event("kernel", "norm_forward_kernel", 1500, 300),  # beside the first one, and 200 us longer
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 2800, 200),
        event("cuda_runtime", "cudaStreamSynchronize", 2900, 10),
        event("cuda_runtime", "cudaLaunchKernel", 900, 10),
        event("cpu_op", "aten::mm", 800, 300),
        {"ph": "M", "name": "process_name"},
    ]
    found = step_profile.summary(events)
    assert found["GPU busy ms"] == pytest.approx(1.0)  # 1000 to 1800, and 2800 to 3000
    assert found["GPU idle share"] == pytest.approx(0.5)  # of 1000 to 3000
    assert (found["kernels"], found["host waits"]) == (2, 1)
    assert found["copies"] == "HtoD (Pageable -> Device) x1"
    assert found["most time"] == "gemm 55%, norm_forward_kernel 27%, Memcpy HtoD  18%"
    assert step_profile.summary(events[-2:]) == {"operators": 1, "GPU": "none"}


def test_a_profile_is_taken(tmp_path):
    calls = []
    found = step_profile.measure(lambda: calls.append(torch.ones(8) @ torch.ones(8)), tmp_path / "a.json.gz", warm_up=2)
    assert len(calls) == 4 and found["ms"] > 0
    with gzip.open(tmp_path / "a.json.gz", "rt") as file:
        assert "traceEvents" in json.load(file)
    assert CUDA or found["operators"] > 0


def test_every_kernel_has_a_marked_test():
    """`pytest -m gpu` chooses some tests of each."""
    root = Path(__file__).parents[2]
    texts = [path.read_text() for path in (root / "tests/kernels").glob("test_*.py")]
    marked = "".join(text for text in texts if "@pytest.mark.gpu" in text)
    ops = [path.parent.name for path in (root / "kernels").glob("*/op.py")]
    assert "attention" in ops and not [op for op in ops if f"megagpt.kernels.{op} import" not in marked]
