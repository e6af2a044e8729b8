"""Compile every kernel in every shipped launch configuration for every chip that has one, without a GPU.

    python tools/kernel_report.py --op activation --chip 90
    python tools/kernel_report.py --write-docs

Every `cases()` of kernels/<op>/cases.py is called with meta tensors; a launch compiles and goes no further, so that
Triton specialises on the arguments as in a real one. Printed for each kernel: registers a thread, stack and spilled
bytes a thread, shared memory, and matrix instructions. Exit status 1, with each offender named, for a kernel that does
not compile, uses the stack (as spills do), needs more shared memory than the chip has, multiplies matrices without the
chip's instruction (wgmma on sm_90, mma.sync on sm_80, 86, 89 and 120), or leaves it to Triton's default whether a
multiplication and an addition become one instruction. Two launches that compile to the same kernel are reported once.
"""

import argparse
import datetime
import json
import multiprocessing
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

import megagpt.kernels
from megagpt.errors import MegaGPTError
from megagpt.kernels.backend import SHARED_KIB, interpreted
from megagpt.log import progress, run_tool

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/benchmarks/kernels_report.md"
MATRIX = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma.sync": "mma.sync"}
REQUIRED = {80: "mma.sync", 86: "mma.sync", 89: "mma.sync", 90: "wgmma", 120: "mma.sync"}
"""What a kernel that multiplies matrices must use. (tcgen05 is not required: its shapes exclude many sizes.)"""
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Kernel:
    """What became of one kernel on one chip. Bytes and registers count for a thread, shared memory for a program."""

    op: str
    case: str
    kernel: str
    chip: int
    warps: int
    stages: int
    registers: int
    stack_bytes: int
    spilled_bytes: int
    shared_bytes: int
    matrix: tuple[str, ...]
    multiplies: bool
    fp_fusion: bool
    compile_seconds: float
    hash: str

    def faults(self) -> list[str]:
        """Why it may not be shipped."""
        found = []
        if self.stack_bytes:
            found.append(f"{self.stack_bytes} bytes of stack, {self.spilled_bytes} bytes of spilled registers")
        if self.shared_bytes > SHARED_KIB[self.chip] * 1024:
            found.append(f"{self.shared_bytes / 1024:.1f} KiB of shared memory; the limit is {SHARED_KIB[self.chip]}")
        if self.multiplies and self.chip in REQUIRED and REQUIRED[self.chip] not in self.matrix:
            found.append(f"multiplies matrices without {REQUIRED[self.chip]}")
        if not self.fp_fusion:
            found.append("is launched without enable_fp_fusion")
        return found


@cache
def find_cases(path: Path) -> dict[str, Callable[[], object]]:
    """The cases of one cases.py by name."""
    pairs = list(runpy.run_path(str(path))["cases"]())
    names = [name for name, _ in pairs]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise MegaGPTError(f"{path}: two cases have the name {min(doubled)!r}")
    return dict(pairs)


@contextmanager
def compile_only(chip: int):
    """Triton believes in a GPU of this kind and only compiles; gives a list of (compiled kernel, seconds)."""
    compiled, run = [], JITFunction.run

    def warm_up(self, *args, grid, warmup, **options):
        started = time.perf_counter()
        result = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((result, time.perf_counter() - started))
        return result

    # The device's number is the chip's, because Triton keeps the target with its cache by device.
    stub = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", chip, 32),
        get_current_device=lambda: chip,
        get_current_stream=lambda device: 0,
        utils=SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": SHARED_KIB[device] * 1024}),
    )
    driver.set_active(stub)
    JITFunction.run = warm_up
    try:
        with knobs.language.scope():
            knobs.language.default_fp_fusion = False  # as newer versions of Triton have it
            yield compiled
    finally:
        JITFunction.run = run


def resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack, and bytes that instructions store there, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)

        def dump(what: str) -> str:
            return subprocess.run([CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True).stdout

        usage = dump("--dump-resource-usage")
        registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
        stores = re.findall(r"\bSTL(?:\.(64|128))?\b", dump("--dump-sass")) if stack else []
    return registers, stack, sum(int(bits or 32) // 8 for bits in stores)


def describe(op: str, case: str, chip: int, kernel: object, seconds: float) -> Kernel:
    """Read what the compiler made."""
    registers, stack, spill = resources(kernel.asm["cubin"])
    intermediate = kernel.asm.get("ttir", "") + kernel.asm["ttgir"]
    return Kernel(
        op=op,
        case=case,
        kernel=kernel.metadata.name,
        chip=chip,
        warps=kernel.metadata.num_warps,
        stages=kernel.metadata.num_stages,
        registers=registers,
        stack_bytes=stack,
        spilled_bytes=spill,
        shared_bytes=kernel.metadata.shared,
        matrix=tuple(name for name, text in MATRIX.items() if text in kernel.asm["ptx"]),
        multiplies=re.search(r"tt\.dot|warp_group_dot|tc_gen5_mma", intermediate) is not None,
        fp_fusion=kernel.metadata.enable_fp_fusion,
        compile_seconds=round(seconds, 2),
        hash=kernel.hash,
    )


def compile_case(op: str, path: Path, case: str, chip: int) -> list[Kernel] | str:
    """The kernels that a case launches, or why it failed."""
    with compile_only(chip) as compiled:
        try:
            find_cases(path)[case]()
        except Exception as error:
            return f"{op}, {case}, sm_{chip}: {type(error).__name__}: {error}"
    if not compiled:
        return f"{op}, {case}, sm_{chip}: launches no kernel"
    return [describe(op, case, chip, kernel, seconds) for kernel, seconds in compiled]


def compile_all(tasks: list[tuple[str, Path, str, int]], jobs: int) -> tuple[list[Kernel], list[str]]:
    """Kernels without repetition, in the order of the tasks, and failures."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, progress(len(tasks), "case", "compiling") as bar:
        futures = [pool.submit(compile_case, *task) for task in tasks]
        try:
            for _ in as_completed(futures):
                bar.update(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    results = [future.result() for future in futures]
    kernels = [kernel for result in results if not isinstance(result, str) for kernel in result]
    unique = {(kernel.op, kernel.chip, kernel.hash): kernel for kernel in reversed(kernels)}
    return list(reversed(unique.values())), [result for result in results if isinstance(result, str)]


def table(kernels: list[Kernel], times: bool) -> str:
    """A Markdown table; for the docs without padding, and without times, which each run would change."""
    header = ["op", "case", "kernel", "chip", "warps", "stages", "registers", "stack, B", "spilled, B", "shared, KiB"]
    rows = [[*header, "matrix instructions", *(["compiled in, s"] if times else [])]]
    for kernel in kernels:
        row = [kernel.op, kernel.case, kernel.kernel, f"sm_{kernel.chip}", kernel.warps, kernel.stages]
        row += [kernel.registers, kernel.stack_bytes, kernel.spilled_bytes, f"{kernel.shared_bytes / 1024:.1f}"]
        row += [", ".join(kernel.matrix) or "-", *([kernel.compile_seconds] if times else [])]
        rows.append([str(value) for value in row])
    widths = [max(map(len, column)) if times else 1 for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def document(kernels: list[Kernel]) -> str:
    """The page of the docs."""
    command = shlex.join(["python", "tools/kernel_report.py", *sys.argv[1:]])
    return f"""# What the kernels compile to

Written by `{command}` on {datetime.date.today()} with triton {triton.__version__} and torch {torch.__version__}, on a
machine that needs no GPU. Every launch that is shipped is compiled for every chip that has settings. Registers, stack
and spilled registers count for a thread, shared memory for a program; a case whose kernel already stands above it under
another name is left out. None uses the stack, so none spills. This says that kernels fit the chip, not how fast they
are.

{table(kernels, times=False)}
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(megagpt.kernels.__file__).parent
    ops = {path.parent.name: path for path in sorted(folder.glob("*/cases.py"))}
    parser.add_argument("--op", action="append", choices=list(ops), help="only this op; may be repeated")
    parser.add_argument(
        "--chip", action="append", type=int, choices=list(SHARED_KIB), help="only this chip; repeatable"
    )
    parser.add_argument("--cases", type=Path, help="a Python file with cases(), instead of those of the ops")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes (default: cores)")
    parser.add_argument("--json", type=Path, help="write the kernels to this file as well")
    parser.add_argument("--write-docs", action="store_true", help=f"write {DOCS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    names = arguments.op or list(ops)
    arguments.files = (
        {arguments.cases.stem: arguments.cases} if arguments.cases else {name: ops[name] for name in names}
    )
    if arguments.write_docs and (arguments.op or arguments.chip or arguments.cases):
        parser.error("--write-docs needs all ops and chips")
    return arguments


def main() -> int:
    """Compile, print, and name offenders."""
    arguments = parse()
    if interpreted():
        raise MegaGPTError("TRITON_INTERPRET is set, so Triton would compile nothing: unset it")
    chips = arguments.chip or list(SHARED_KIB)
    started = time.perf_counter()
    tasks = [
        (op, path, case, chip) for op, path in arguments.files.items() for case in find_cases(path) for chip in chips
    ]
    kernels, failures = compile_all(tasks, arguments.jobs)
    print(table(kernels, times=True))
    print(f"{len(kernels)} kernels of {len(tasks)} cases in {time.perf_counter() - started:.0f} s")
    for kernel in kernels:
        failures += [f"{kernel.op}, {kernel.case}, {kernel.kernel}, sm_{kernel.chip}: {x}" for x in kernel.faults()]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(kernel) for kernel in kernels], indent=1) + "\n")
    for failure in failures:
        print(f"FAULT: {failure}")
    if arguments.write_docs and not failures:
        DOCS.write_text(document(kernels))
    return int(bool(failures))


if __name__ == "__main__":
    run_tool(main)
