"""Measure the cost of a job's store when thousands of ranks send heartbeats, query it at once, and end together.

The ranks are simulated: each has the connection and the `Heartbeat` of a real rank, but no model. They share a few
processes on this machine. A separate process serves the store, and its time is measured:

    ulimit -n 40000; python tools/bench_control_plane.py --ranks 1024 --ranks 16384

On a real cluster the ranks query at the same time; the store needs the same time as here.
"""

import argparse
import itertools
import json
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from megagpt.train.hang_detector import SIGN_TICKS, tick_seconds
from megagpt.train.heartbeat import Heartbeat, Progress
from megagpt.train.post_mortem import Hang

SPARE_FILES = 1000
GLOO_RANKS = 64
"""Number of ranks in the gloo group; each is a thread."""


def allow_files(count: int) -> None:
    """Raise this process's limit of open files; every connection needs one. Exits if the hard limit is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise SystemExit(
            f"{count} open files are needed and {hard} are allowed: raise `ulimit -n`, or take fewer ranks"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def serve(ranks: int, pipe: Connection) -> None:
    """Serve the store. Answer each message with the CPU seconds of this process so far."""
    allow_files(ranks + SPARE_FILES)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    while pipe.recv():
        pipe.send(time.process_time())


def client(ranks: range, size: int, port: int, pipe: Connection) -> None:
    """Simulate these ranks: for each message, run the named task on every rank, and send the seconds of each."""
    allow_files(len(ranks) + SPARE_FILES)
    beats = []
    for rank in ranks:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        beats.append(Heartbeat(Progress(step=1, section="forward"), rank, size, dist.PrefixStore("watchdog1", store)))

    def look(heartbeat: Heartbeat) -> None:
        heartbeat.beat(idle=1.0)
        heartbeat.announced()
        heartbeat.last_beat((heartbeat.rank + 1) % size)

    tasks = {
        "look": look,
        "find": lambda heartbeat: heartbeat.may_report(0),
        "hear": lambda heartbeat: heartbeat.announced(),
    }
    pipe.send("connected")
    while name := pipe.recv():
        taken = []
        for heartbeat in beats:
            start = time.perf_counter()
            tasks[name](heartbeat)
            taken.append(time.perf_counter() - start)
        pipe.send(taken)


class Job:
    """A store and `ranks` simulated ranks."""

    def __init__(self, ranks: int, processes: int) -> None:
        context = get_context("spawn")
        self.ranks, self._processes, self._clients = ranks, [], []

        def start(function, *arguments) -> Connection:
            ours, theirs = context.Pipe()
            process = context.Process(target=function, args=(*arguments, theirs), daemon=True)
            process.start()
            self._processes.append(process)
            return ours

        self._server = start(serve, ranks)
        self.port = self._server.recv()
        edges = [ranks * number // processes for number in range(processes + 1)]
        started = time.perf_counter()
        for first, end in itertools.pairwise(edges):
            self._clients.append(start(client, range(first, end), ranks, self.port))
        for pipe in self._clients:
            pipe.recv()
        self.connected = time.perf_counter() - started

    def measure(self, name: str) -> dict[str, float]:
        """Run a task once on every rank, without waiting. Returns the times of the store and of the ranks."""
        before, started = self._store_seconds(), time.perf_counter()
        for pipe in self._clients:
            pipe.send(name)
        taken = sorted(seconds for pipe in self._clients for seconds in pipe.recv())
        wall, busy = time.perf_counter() - started, self._store_seconds() - before
        return {
            "seconds": wall,
            "store_seconds": busy,
            "median_ms": 1000 * statistics.median(taken),
            "p99_ms": 1000 * taken[int(0.99 * len(taken))],
        }

    def report(self) -> float:
        """Seconds that one rank needs to read all heartbeats twice and to announce a hang."""
        store = dist.TCPStore("127.0.0.1", self.port, is_master=False, wait_for_workers=False)
        heartbeat = Heartbeat(Progress(), 0, self.ranks, dist.PrefixStore("watchdog1", store))
        started = time.perf_counter()
        heartbeat.last_beats()
        beats = heartbeat.last_beats()
        heartbeat.announce(asdict(Hang.of("a hang", beats, silent=set(), finder=0)))
        return time.perf_counter() - started

    def _store_seconds(self) -> float:
        self._server.send(True)
        return self._server.recv()

    def end(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()


def gloo_connections(ranks: int, lazy: bool) -> dict[str, float]:
    """Number of files that a rank holds open for one gloo group, after its creation and after an all-gather."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def form(rank: int) -> dist.ProcessGroupGloo:
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1", lazy_init=lazy)]
        options._threads = 1
        return dist.ProcessGroupGloo(store.clone(), rank, ranks, options)

    def gather(rank: int) -> None:
        numbers = [torch.zeros(1) for _ in range(ranks)]
        groups[rank].allgather([numbers], [torch.tensor([float(rank)])]).wait()
        assert [number.item() for number in numbers] == list(range(ranks))

    with ThreadPoolExecutor(ranks) as pool:
        before = open_files()
        groups = list(pool.map(form, range(ranks)))
        formed = open_files()
        list(pool.map(gather, range(ranks)))
        gathered = open_files()
    # Both ends of a connection are in this process. Each rank also has a connection to the store.
    return {"formed": (formed - before) / ranks - 2, "gathered": (gathered - before) / ranks - 2}


def open_files() -> int:
    """Number of open files and sockets of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def measure(ranks: int, processes: int, rounds: int) -> dict[str, float]:
    """All figures of a job of `ranks` ranks."""
    job = Job(ranks, processes)
    try:
        looks = [job.measure("look") for _ in range(rounds)]
        tick, busy = tick_seconds(ranks), statistics.median(look["store_seconds"] for look in looks)
        found = job.measure("find")
        reading = job.report()
        heard = job.measure("hear")
    finally:
        job.end()
    return {
        "ranks": ranks,
        "connecting_seconds": round(job.connected, 1),
        "tick_seconds": tick,
        "store_microseconds_a_look": round(1e6 * busy / ranks, 1),
        "store_share_of_a_processor": round(busy / tick, 3),
        "look_median_ms": round(statistics.median(look["median_ms"] for look in looks), 2),
        "look_p99_ms": round(statistics.median(look["p99_ms"] for look in looks), 2),
        "looks_a_second_at_most": round(ranks / busy),
        "find_store_seconds": round(found["store_seconds"], 3),
        "report_seconds": round(reading, 2),
        "hear_store_seconds": round(heard["store_seconds"], 3),
        "named_after_seconds": round((SIGN_TICKS + 1) * tick + found["seconds"] + reading, 1),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, action="append", required=True, help="may be repeated")
    parser.add_argument("--processes", type=int, default=2, help="processes that the ranks share")
    parser.add_argument("--rounds", type=int, default=5, help="queries of every rank; figures are medians")
    parser.add_argument("--output", type=Path, help="a .json file for the figures")
    arguments = parser.parse_args()
    figures = []
    for ranks in arguments.ranks:
        figures.append(measure(ranks, arguments.processes, arguments.rounds))
        print(json.dumps(figures[-1], indent=1), flush=True)
    groups = {
        name: {"ranks": GLOO_RANKS, **gloo_connections(GLOO_RANKS, lazy)}
        for name, lazy in (("eager", False), ("lazy", True))
    }
    print(json.dumps({"open_files_of_a_rank_in_a_group": groups}, indent=1))
    if arguments.output:
        from measured_on import measured_on

        arguments.output.write_text(
            json.dumps({**measured_on(), "jobs": figures, "open_files_of_a_rank_in_a_group": groups}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
