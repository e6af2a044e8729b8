"""Starts training as users do, and looks at what it leaves."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from megagpt.checkpoint import find, load
from megagpt.parallel.launch import PR_SET_PDEATHSIG
from megagpt.parallel.shards import Shard

INJECT = Path(__file__).parent / "inject.py"
PATIENCE = 300.0
"""Seconds after which what a test waits for is taken to hang: many times what it takes, for machines are busy."""


def command(ranks: int, overrides: list[str], program: tuple = ("-m", "megagpt"), **options: int) -> list[str]:
    """The command line of a job; options are the launcher's."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *flags]
    return [*(launcher if ranks > 1 else [sys.executable]), *program, *overrides]


def start(command: list[str], log: Path, **variables: str) -> subprocess.Popen:
    """Start a job, which ends with this process whatever becomes of the test."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"} | variables
    end_with_parent = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL)
    return subprocess.Popen(
        command, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, preexec_fn=end_with_parent
    )


def steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def losses(run_dir: Path) -> list[float]:
    """The loss of every step, exactly."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, log: Path, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what does not depend on a process that is still there."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def settings(overrides: list[str], folder: Path, name: str, steps: int) -> list[str]:
    tokens = 32 * 8 * steps
    more = ["optim.global_batch_size=8", "optim.ramp_start=null", "optim.ramp_tokens=0", "model.num_layers=2"]
    return [*overrides, *more, f"run_name={name}", f"runs_dir={folder}", f"optim.train_tokens={tokens}"]


def opened(overrides: list[str]):
    """Opens a run in this process; a context manager that gives its trainer."""
    from megagpt.config.load import load as load_config
    from megagpt.stages.session import open_run

    return open_run(load_config(overrides))


def tensors(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Every tensor of the newest checkpoint, whole, and the state."""
    folder = find(run_dir)
    index = json.loads((folder / "index.json").read_text())
    entries = [entry for entries in index.values() for entry in entries if not entry["private"]]
    shards = {
        entry["name"]: Shard.whole(entry["name"], torch.empty(entry["global_shape"], dtype=torch.float32))
        for entry in entries
    }
    state = load(folder, shards.values())
    return {name: shard.data for name, shard in shards.items()}, state


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks that a launcher has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = []
    for pid in map(int, children):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b"megagpt" in Path(f"/proc/{pid}/cmdline").read_bytes():
                ranks.append(pid)
    return ranks
