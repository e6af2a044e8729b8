"""Checks every rank's machine: limits, versions, clocks, and the speed of computation and messages."""

import platform
import resource
import socket
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt import env
from megagpt.checkpoint import World
from megagpt.parallel import cpu

PACKAGES = ("torch", "megatron-core", "deepspeed", "triton", "numpy")
FEWEST_FILES = 4096
"""Lowest acceptable limit of open files per rank: sockets to its peers, data, checkpoints."""
LARGEST_SKEW_SECONDS = 2.0
"""Largest acceptable clock difference, in seconds; beyond it the order of events in logs is unreliable."""
SLOW = 1.25
"""A rank is slow if it takes more than this factor times the ranks' median."""
REPEATS = 5
SIZE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the timed matrix product, by kind of device."""
MESSAGE_BYTES = {"cuda": 256 * 2**20, "cpu": 4 * 2**20}
"""Size of the timed message, by kind of device."""


def check_environment(world: World, files: Sequence[Path] = (), need_gpus: bool = False) -> tuple[list[str], list[str]]:
    """Problems of the ranks' machines, and facts for the user. Collective: every rank returns the same.

    files: files that must be the same on every rank. need_gpus: whether a rank without a GPU is a problem.
    """
    started = time.time()
    reports = world.gather(_report(files, need_gpus))
    if world.size > 1:
        dist.barrier()  # so that all ranks read their clocks at the same time
    clocks = world.gather(time.time())
    matmul, message = world.gather(_matmul_seconds()), _message_seconds(world)
    problems = [
        f"rank {rank} ({report['host']}): {text}" for rank, report in enumerate(reports) for text in report["problems"]
    ]
    problems += _differences(reports, "versions") + _differences(reports, "settings")
    problems += _differences(reports, "files")
    hosts = [f"rank {rank} ({report['host']})" for rank, report in enumerate(reports)]
    slow = slow_ranks(hosts, matmul, "a matrix product") + slow_ranks(hosts, message, "a message to a neighbour")
    if cpu.device().type == "cuda":
        problems += slow
    middle = statistics.median(clocks)
    problems += [
        f"{hosts[rank]}: its clock differs by {clock - middle:+.1f} s from the others': synchronise it (chrony, ntp)"
        for rank, clock in enumerate(clocks)
        if abs(clock - middle) > LARGEST_SKEW_SECONDS
    ]
    shown = ", ".join(f"{name} {number}" for name, number in reports[0]["versions"].items())
    distinct, size = len({report["host"] for report in reports}), SIZE[cpu.device().type]
    facts = [
        f"{world.size} rank(s) on {distinct} host(s), checked in {time.time() - started:.1f} s",
        f"Python {platform.python_version()}, {shown}",
        f"a matrix product of {size}^3 takes {statistics.median(matmul) * 1e3:.2f} ms (median of ranks)",
        *(f"{name}={value}" for name, value in reports[0]["settings"].items()),
    ]
    if cpu.device().type == "cpu":  # ranks share the cores, so a slow rank is no fault of its machine
        facts += slow
    if world.size > 1:
        rate = MESSAGE_BYTES[cpu.device().type] / statistics.median(message) / 1e9
        facts.append(f"neighbours exchange {rate:.2f} GB/s in each direction at the same time (median of ranks)")
    return problems, facts


def slow_ranks(names: list[str], seconds: list[float], what: str) -> list[str]:
    """A sentence for each rank that takes more than SLOW times the ranks' median."""
    median = statistics.median(seconds)
    return [
        f"{name} is slow: {what} takes {taken * 1e3:.2f} ms, {taken / median:.1f} times the median"
        for name, taken in zip(names, seconds, strict=True)
        if taken > SLOW * median
    ]


def _report(files: Sequence[Path], need_gpus: bool) -> dict[str, Any]:
    problems = []
    if need_gpus and not torch.cuda.is_available():
        problems.append(
            f"PyTorch {torch.__version__} finds no GPU: check the driver (nvidia-smi), the job's GPUs "
            "(--gpus-per-node), and that this PyTorch was built with CUDA"
        )
    opened, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if opened != resource.RLIM_INFINITY and opened < FEWEST_FILES:
        problems.append(f"only {opened} open files are allowed: raise it with `ulimit -n {FEWEST_FILES}` or more")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if torch.cuda.is_available() and locked != resource.RLIM_INFINITY:
        problems.append("locked memory is limited, but InfiniBand needs more: set `ulimit -l unlimited`")
    if env.world_size() == 1 and (port := env.master_port()) and not _is_free(port):
        problems.append(f"port {port} (MASTER_PORT) is in use: choose another")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        versions["GPU"] = torch.cuda.get_device_name()
    return {
        "host": socket.gethostname(),
        "problems": problems,
        "versions": versions,
        "settings": env.network_settings(),
        "files": {str(path): f"{path.stat().st_size:,} bytes" for path in files if path.is_file()},
    }


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _differences(reports: list[dict[str, Any]], what: str) -> list[str]:
    """One sentence for each version, setting or file that differs between ranks. what: the key in `reports`."""
    problems = []
    for name in sorted({name for report in reports for name in report[what]}):
        values = [report[what].get(name, "missing") for report in reports]
        common = statistics.mode(values)
        odd = [rank for rank, value in enumerate(values) if value != common]
        if odd:
            ranks = ", ".join(f"{values[rank]} on rank {rank} ({reports[rank]['host']})" for rank in odd[:8])
            problems.append(f"{name} is {common} on most ranks, but {ranks}: make the machines alike")
    return problems


def _matmul_seconds() -> float:
    device = cpu.device()
    size = SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left = torch.randn(size, size, device=device, dtype=dtype)
    return _best(lambda: left @ left)


def _message_seconds(world: World) -> list[float]:
    """Seconds that each rank takes to exchange a message with the faster of its two neighbours. Collective.

    Disjoint pairs of ranks send at the same time, so a slow rank delays one neighbour at a time, and each neighbour
    still has another partner.
    """
    if world.size == 1:
        return [0.0]
    device = cpu.device()
    out = torch.zeros(MESSAGE_BYTES[device.type], dtype=torch.uint8, device=device)
    into = torch.empty_like(out)
    times = []
    for shift in (0, 1) if world.size > 2 else (0,):
        place = (world.rank - shift) % world.size
        partner = (place + (1 if place % 2 == 0 else -1) + shift) % world.size
        if place != world.size - 1 or place % 2:  # with an odd number of ranks the last one has no partner
            times.append(_best(lambda partner=partner: _exchange(out, into, partner)))
        dist.barrier()
    return world.gather(min(times))


def _exchange(out: torch.Tensor, into: torch.Tensor, partner: int) -> None:
    operations = [dist.P2POp(dist.isend, out, partner), dist.P2POp(dist.irecv, into, partner)]
    for request in dist.batch_isend_irecv(operations):
        request.wait()


def _best(function: Any) -> float:
    """Seconds of the fastest of REPEATS calls, after one call to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        _synchronize()
        start = time.perf_counter()
        function()
        _synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
