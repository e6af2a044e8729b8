"""Every kernel that is shipped compiles for its chips within their limits; and the report does find what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).parents[2]

FAULTY = """
import torch
import triton
import triton.language as tl


@triton.jit
def matrix(a_ptr, c_ptr, repeats, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    offset = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    sum = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(repeats):
        a = tl.load(a_ptr + offset)
        sum = tl.dot(a, a, sum, input_precision=PRECISION)
        a_ptr += BLOCK * BLOCK
    tl.store(c_ptr + offset, sum)


@triton.jit
def broken(a_ptr):
    tl.store(a_ptr, no_such_name)


def launch(block, dtype=torch.bfloat16, precision="tf32", fp_fusion=True):
    a, c = (torch.empty(block, block, dtype=dtype, device="meta") for dtype in (dtype, torch.float32))
    matrix[(1,)](a, c, 64, BLOCK=block, PRECISION=precision, num_warps=4, enable_fp_fusion=fp_fusion)


def cases():
    yield "good", lambda: launch(64)
    yield "good again", lambda: launch(64)
    yield "large", lambda: launch(256)
    yield "small", lambda: launch(16)
    yield "exact", lambda: launch(32, torch.float32, "ieee")
    yield "unsaid", lambda: launch(64, fp_fusion=None)
    yield "invalid", lambda: broken[(1,)](torch.empty(1, device="meta"))
    yield "empty", lambda: None
"""
FAULTS = {
    ("invalid, sm_80", "CompilationError"),
    ("invalid, sm_90", "CompilationError"),
    ("empty, sm_80", "launches no kernel"),
    ("empty, sm_90", "launches no kernel"),
    ("large, matrix, sm_80", "spilled registers"),
    ("large, matrix, sm_90", "spilled registers"),
    ("large, matrix, sm_80", "KiB of shared memory; the limit is 163"),
    ("large, matrix, sm_90", "KiB of shared memory; the limit is 227"),
    ("small, matrix, sm_90", "multiplies matrices without wgmma"),
    ("unsaid, matrix, sm_80", "launched without enable_fp_fusion"),
    ("unsaid, matrix, sm_90", "launched without enable_fp_fusion"),
    ("exact, matrix, sm_80", "multiplies matrices without mma.sync"),
    ("exact, matrix, sm_90", "multiplies matrices without wgmma"),
}


def report(*arguments: object, interpret: str = "0", cache: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": interpret} | ({"TRITON_CACHE_DIR": str(cache)} if cache else {})
    command = [sys.executable, ROOT / "tools/kernel_report.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nothing is cached on a fresh machine
def test_everything_that_is_shipped(thorough, tmp_path):
    chips = {80, 90, 120} if thorough else {90}  # an old one, the usual one, and the one with the least room
    ops = {path.parent.name for path in ROOT.glob("kernels/*/cases.py")}
    if not thorough:
        ops.remove("attention")  # minutes of compiling
    chosen = [argument for chip in chips for argument in ("--chip", chip)]
    chosen += [argument for op in ops for argument in ("--op", op)]
    result = report(*chosen, "--json", tmp_path / "kernels.json")
    assert result.returncode == 0, result.stdout + result.stderr
    kernels = json.loads((tmp_path / "kernels.json").read_text())
    assert {kernel["op"] for kernel in kernels} == ops
    assert {kernel["chip"] for kernel in kernels} == chips
    assert all(0 < kernel["registers"] < 256 and not kernel["stack_bytes"] for kernel in kernels)


@pytest.mark.slow
def test_finds_what_is_wrong(tmp_path):
    faulty, output = tmp_path / "faulty.py", tmp_path / "kernels.json"
    faulty.write_text(FAULTY)
    result = report("--cases", faulty, "--chip", 80, "--chip", 90, "--json", output, cache=tmp_path / "cache")
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("FAULT: ")]
    for where, what in FAULTS:
        assert any(line.startswith(f"FAULT: faulty, {where}: ") and what in line for line in lines), result.stdout
    assert len(lines) == len(FAULTS), result.stdout
    kernels = {kernel["case"]: kernel for kernel in json.loads(output.read_text()) if kernel["chip"] == 90}
    assert list(kernels) == ["good", "large", "small", "exact", "unsaid"]
    assert kernels["large"]["stack_bytes"] and kernels["large"]["spilled_bytes"]
    assert kernels["good"]["matrix"] == ["wgmma"]
    assert kernels["good"]["shared_bytes"] in {stages * 64 * 64 * 2 for stages in (1, 2, 3)}


def test_refuses_the_interpreter():
    result = report("--op", "activation", interpret="1")
    assert result.returncode == 1
    assert "TRITON_INTERPRET" in result.stderr
