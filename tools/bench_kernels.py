"""Time the kernels against PyTorch, compiled PyTorch, FlashAttention, cuDNN, Apex and Transformer Engine on one GPU.

    python tools/bench_kernels.py --output docs/benchmarks
    python tools/bench_kernels.py --op attention --quick

For each problem, our outputs and gradients are compared with the same mathematics in float64 (float32 for attention and
cross-entropy); if they differ, nothing is timed. Then all solvers take turns. A time is measured between CUDA events
around one call, which is queued while the GPU is busy, so that Python's time does not count. A ratio is the median over
rounds of their time divided by ours. Solvers that are not installed or do not support a problem are named. Inputs
exceed the L2 cache.

After every problem it writes kernels_<gpu>.json and .html, so that an interrupted run keeps its results: times, ratios,
fractions of the measured copy bandwidth and matrix rate, peak memory, and targets, reached or not. The exit code is 1
if our results are wrong; a missed target is only reported.
"""

import argparse
import datetime
import importlib.metadata
import json
import re
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch._functorch.config
from kernel_problems import OURS, PROBLEMS, Problem, Sizes, Solver, Work
from torch import Tensor

from megagpt.errors import MegaGPTError
from megagpt.log import log, progress, run_tool

TOLERANCE = 2e-2  # of the largest value; bfloat16 rounds by 2^-9
SECONDS = 1.0  # of measuring a problem in one direction
ROUNDS = (5, 40)
HOLD_CYCLES = 4_000_000  # about 2 ms of the GPU, while the host queues a call
PACKAGES = ("torch", "triton", "flash-attn", "apex", "transformer-engine")

Run = Callable[[], object]
Record = dict[str, Any]


class Clock(Protocol):
    """Measures one call."""

    def seconds(self, run: Run) -> float:
        """Time on the device."""

    def peak_bytes(self, run: Run) -> int:
        """Peak memory during the call minus the memory before it."""


class CudaClock:
    """`Clock` of the current CUDA device."""

    def seconds(self, run: Run) -> float:
        """Time between two events around the call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HOLD_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def peak_bytes(self, run: Run) -> int:
        """Peak memory of torch's allocator minus the memory before the call."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before


def outputs(solver: Solver, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a solver, always as a tuple."""
    out = solver(**inputs)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def weights(problem: Problem) -> list[Tensor]:
    """Gradients of the outputs, the same for all solvers."""
    with torch.no_grad():
        shapes = [(out.shape, out.dtype, out.device) for out in outputs(problem.solvers[OURS], problem.inputs)]
    torch.manual_seed(1)
    return [torch.randn(shape, dtype=dtype, device=device) for shape, dtype, device in shapes]


def leaves(inputs: dict[str, Tensor]) -> list[Tensor]:
    """Inputs that have a gradient."""
    return [tensor for tensor in inputs.values() if tensor.requires_grad]


def error(problem: Problem, given: list[Tensor]) -> float:
    """Largest difference of our outputs and gradients from the truth, relative to the largest value of each."""
    exact = {
        name: tensor.detach().to(problem.precision).requires_grad_(tensor.requires_grad)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in problem.inputs.items()
    }
    pairs = []
    for solver, inputs in ((problem.solvers[OURS], problem.inputs), (problem.truth, exact)):
        results = outputs(solver, inputs)
        pairs.append([result.detach() for result in results])
        if "backward" in problem.work:
            pairs[-1] += gradients(results, inputs, given)()
    worst = 0.0
    for actual, expected in zip(*pairs, strict=True):
        difference = (actual.to(expected.dtype) - expected).abs().max() / expected.abs().max()
        worst = max(worst, difference.item() if difference.isfinite() else float("inf"))
    return worst


def gradients(results: tuple[Tensor, ...], inputs: dict[str, Tensor], given: list[Tensor]) -> Run:
    """A backward pass, which can be repeated. A solver may use its own parameters in place of some inputs."""
    given = [weight.to(result.dtype) for weight, result in zip(given, results, strict=True)]
    wanted = leaves(inputs)
    return lambda: torch.autograd.grad(results, wanted, given, retain_graph=True, allow_unused=True)


def forward(problem: Problem, given: list[Tensor], solver: Solver) -> Run:
    """A forward pass."""
    return lambda: solver(**problem.inputs)


def backward(problem: Problem, given: list[Tensor], solver: Solver) -> Run:
    """A backward pass; the forward pass happens here."""
    return gradients(outputs(solver, problem.inputs), problem.inputs, given)


def both(problem: Problem, given: list[Tensor], solver: Solver) -> Run:
    """Forward, and backward where there is one."""
    if "backward" not in problem.work:
        return forward(problem, given, solver)
    return lambda: backward(problem, given, solver)()


def prepare(problem: Problem, make: Callable[[Solver], Run]) -> tuple[dict[str, Run], dict[str, str]]:
    """(working calls, after a warm-up; the error of each other solver)."""
    runs, missing = {}, {}
    for name, solver in problem.solvers.items():
        try:
            run = make(solver)
            for _ in range(2):
                run()
            runs[name] = run
        except Exception as reason:
            if name == OURS:
                raise
            missing[name] = f"{type(reason).__name__}: {reason}".splitlines()[0][:200]
    return runs, missing


def take_turns(runs: dict[str, Run], clock: Clock) -> dict[str, list[float]]:
    """Seconds of every call. All are called once per round, each round beginning with another one."""
    names = list(runs)
    once = sum(clock.seconds(runs[name]) for name in names)
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(SECONDS / max(once, 1e-9))))
    times = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock.seconds(runs[name]))
    return times


def measure(problem: Problem, clock: Clock, limits: dict[str, float]) -> list[Record]:
    """A record for each direction of a problem, or one record of the failure if our results are wrong."""
    given = weights(problem)
    about = {"op": problem.op, "case": problem.case, "error": error(problem, given)}
    if about["error"] > TOLERANCE:
        return [about | {"failed": f"differs from {problem.precision} by {about['error']:.2g} of the largest value"}]
    solvers, _ = prepare(problem, partial(both, problem, given))
    peaks = {name: clock.peak_bytes(run) for name, run in solvers.items()}
    records = []
    for direction, work in problem.work.items():
        make = {"forward": forward, "backward": backward}[direction]
        runs, missing = prepare(problem, partial(make, problem, given))
        record = about | {"direction": direction, "missing": missing, "peak_bytes": peaks}
        records.append(record | figures(work, take_turns(runs, clock), limits, peaks))
    return records


def figures(work: Work, times: dict[str, list[float]], limits: dict[str, float], peaks: dict[str, int]) -> Record:
    """Times, ratios, fractions of limits, and whether targets are reached."""
    ours = times[OURS]
    median = {name: statistics.median(values) for name, values in times.items()}
    ratio = {
        name: statistics.median(theirs / mine for theirs, mine in zip(values, ours, strict=True))
        for name, values in times.items()
        if name != OURS
    }
    fraction = {
        "copy": work.bytes / median[OURS] / limits["copy"],
        "matmul": work.flops / median[OURS] / limits["matmul"],
    }
    memory = {f"memory of {name}": peak / max(peaks[OURS], 1) for name, peak in peaks.items() if name != OURS}
    measured = ratio | fraction | memory
    return {
        "rounds": len(ours),
        "seconds": {name: {"median": median[name], "quartiles": quartiles(times[name])} for name in times},
        "ratio": ratio,
        "unit": "TFLOP/s" if work.flops else "GB/s",
        "rate": {name: (work.flops / 1e12 or work.bytes / 1e9) / value for name, value in median.items()},
        "fraction": {name: value for name, value in fraction.items() if value},
        "targets": [
            {"against": name, "must": must, "aim": aim, "verdict": verdict(measured.get(name), must, aim)}
            for name, (must, aim) in work.targets.items()
        ],
    }


def quartiles(values: list[float]) -> list[float]:
    """The lower and the upper quartile."""
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


def verdict(value: float | None, must: float | None, aim: float | None) -> str:
    """The verdict on a target."""
    if value is None:
        return "not measured"
    if aim is not None and value >= aim:
        return "aim reached"
    if must is not None and value < must:
        return "NOT REACHED"
    return "must reached" if must is not None else "aim not reached"


def table(records: list[Record]) -> str:
    """Markdown, a row for a record."""
    lines = ["| op | case | direction | ms | rate | of limit | ratio to others | targets (must, aim) |"]
    lines.append("| --- " * (lines[0].count("|") - 1) + "|")
    for record in records:
        if "failed" in record:
            lines.append(f"| {record['op']} | {record['case']} | | | | | | WRONG: {record['failed']} |")
            continue
        cells = [record["op"], record["case"], record["direction"], f"{1000 * record['seconds'][OURS]['median']:.3f}"]
        cells += [f"{record['rate'][OURS]:.0f} {record['unit']}"]
        cells += [", ".join(f"{100 * value:.0f}% {name}" for name, value in record["fraction"].items())]
        cells += [", ".join(f"{name} {value:.2f}" for name, value in record["ratio"].items())]
        targets = [f"{t['against']} ({t['must'] or '-'}, {t['aim'] or '-'}): {t['verdict']}" for t in record["targets"]]
        lines.append("| " + " | ".join([*cells, "; ".join(targets)]) + " |")
    return "\n".join(lines)


def absent(records: list[Record]) -> str:
    """The solvers that were not measured, with the reasons, once per op."""
    reasons = {(record["op"], *item) for record in records for item in record.get("missing", {}).items()}
    return "\n".join(f"{op}: {name} was not measured ({reason})" for op, name, reason in sorted(reasons))


def plot(report: Record) -> str:
    """One HTML page, a chart for an op and direction. Needs plotly; the page loads its script from the network."""
    import plotly.graph_objects as go

    records = [record for record in report["results"] if "rate" in record]
    parts = [f"<!doctype html><meta charset='utf-8'><title>Kernels</title><h1>Kernels on {report['device']}</h1>"]
    for op, direction in dict.fromkeys((record["op"], record["direction"]) for record in records):
        chosen = [record for record in records if (record["op"], record["direction"]) == (op, direction)]
        solvers = dict.fromkeys(name for record in chosen for name in record["rate"])
        cases = [record["case"] for record in chosen]
        bars = [go.Bar(name=name, x=cases, y=[record["rate"].get(name) for record in chosen]) for name in solvers]
        figure = go.Figure(bars)
        figure.update_layout(title=f"{op}, {direction}", yaxis_title=chosen[0]["unit"], barmode="group")
        parts.append(figure.to_html(full_html=False, include_plotlyjs="cdn" if len(parts) == 1 else False))
    return "\n".join(parts)


def write(folder: Path, report: Record) -> None:
    """Write the JSON, and the plots if plotly is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "kernels_" + re.sub(r"[^a-z0-9]+", "_", report["device"].lower()).strip("_")
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    try:
        (folder / f"{name}.html").write_text(plot(report))
    except ImportError:
        log.warning("plotly is not installed, so there are no plots")


def measure_limits(clock: Clock, device: str, size: int = 8192, copied: int = 2**30) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and operations a second of a product of bfloat16 matrices."""
    source, target = (torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2))
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = {}
    for name, run, work in (
        ("copy", lambda: target.copy_(source), 2 * copied),
        ("matmul", lambda: torch.mm(a, b), 2 * size**3),
    ):
        run()
        best[name] = work / statistics.median(clock.seconds(run) for _ in range(20))
    return best


def machine(device: str) -> Record:
    """Device, package versions, date and command."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "tools/bench_kernels.py", *sys.argv[1:]]),
    }


def bench(ops: list[str], sizes: Sizes, clock: Clock, limits: dict[str, float], output: Path | None) -> list[Record]:
    """Measure all problems of `ops`; write and print each as it is done."""
    report = machine(sizes.device) | {"limits": limits, "results": []}
    with progress(len(ops), "op", "measuring") as bar:
        for op in ops:
            for problem in PROBLEMS[op](sizes):
                torch.compiler.reset()
                bar.set_postfix(case=f"{op}, {problem.case}", refresh=False)
                records = measure(problem, clock, limits)
                del problem  # free its memory before the next one allocates
                report["results"] += records
                print("\n".join(table(records).splitlines()[2:]), flush=True)
                if output:
                    write(output, report)
            bar.update(1)
    return report["results"]


def main() -> int:
    """Measure and report the results. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=list(PROBLEMS), help="only this op; may be repeated")
    parser.add_argument("--quick", action="store_true", help="attention at one sequence length only")
    parser.add_argument("--output", type=Path, help="folder for kernels_<gpu>.json and .html")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise MegaGPTError("this benchmark needs a CUDA device, and there is none")
    sizes = replace(Sizes(), sequences=(Sizes.target_sequence,)) if options.quick else Sizes()
    torch._functorch.config.donated_buffer = False  # compiled backward passes are run repeatedly
    clock = CudaClock()
    limits = measure_limits(clock, sizes.device)
    print(f"copy {limits['copy'] / 1e12:.2f} TB/s, matmul {limits['matmul'] / 1e12:.0f} TFLOP/s")
    results = bench(options.op or list(PROBLEMS), sizes, clock, limits, options.output)
    print(f"\n{table(results)}\n{absent(results)}")
    return int(any("failed" in record for record in results))


if __name__ == "__main__":
    run_tool(main)
