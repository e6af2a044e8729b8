"""Profile a step with PyTorch's profiler, and sum up its trace."""

import gzip
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

SHOWN = 8
"""Number of kernels to name."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")
"""Calls in which the host waits for the GPU."""


def measure(run: Callable[[], object], path: Path, warm_up: int) -> dict[str, Any]:
    """Figures of one call of `run` after `warm_up` calls; see `summary`. Its trace is written to `path` (.json.gz)."""
    cuda = torch.cuda.is_available()
    for _ in range(warm_up):
        run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
    unwatched = time.perf_counter() - began
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    return {"ms": 1000 * unwatched} | summary(events)


def summary(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures from a Chrome trace: the GPU's busy time and idle share, its most expensive kernels, copies, and waits.

    The idle share is the share of the time between the GPU's first and last work in which no stream was busy. Without a
    GPU there is only the number of CPU operators.
    """
    events = [event for event in events if event.get("ph") == "X" and "dur" in event]
    device = [event for event in events if event.get("cat") in ON_GPU]
    if not device:
        return {"operators": sum(event.get("cat") == "cpu_op" for event in events), "GPU": "none"}
    spans = sorted((float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in device)
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    whole = end - spans[0][0]
    times: defaultdict[str, float] = defaultdict(float)
    for event in device:
        times[short(event["name"])] += float(event["dur"])
    most = sorted(times.items(), key=lambda item: -item[1])[:SHOWN]
    calls = Counter(event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver"))
    copies = Counter(re.sub(r"^Memcpy ", "", event["name"]) for event in device if event["name"].startswith("Memcpy"))
    return {
        "GPU busy ms": busy / 1000,
        "GPU idle share": 1 - busy / whole if whole else 0.0,
        "kernels": sum(event["cat"] == "kernel" for event in device),
        "host waits": sum(calls[name] for name in WAITS),
        "copies": ", ".join(f"{name} x{count}" for name, count in sorted(copies.items())) or "none",
        "most time": ", ".join(f"{name} {100 * spent / sum(times.values()):.0f}%" for name, spent in most),
    }


def short(name: str) -> str:
    """A kernel's name without template arguments and parameters."""
    return re.sub(r"^void ", "", re.sub(r"[<(].*", "", name, flags=re.DOTALL))[:60]
