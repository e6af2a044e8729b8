"""F43: on one machine nothing listens where others could reach it, and strangers on the port do no harm."""

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.faults import job

LAUNCHER = [sys.executable, "-m", "megagpt.parallel.torchrun", "--nproc-per-node=2"]


def listeners(pids: list[int]) -> set[tuple[str, int]]:
    """Addresses, as in /proc/net/tcp, and ports on which processes listen."""
    inodes = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(str(handle.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


@pytest.mark.slow
def test_f43_only_loopback_listens_and_strangers_do_no_harm(overrides, tmp_path):
    log, port = tmp_path / "log", job.free_port()
    settings = [*job.settings(overrides, tmp_path, "run", steps=100), "checkpoint.interval=0", "parallel=data"]
    process = job.start([*LAUNCHER, f"--master-port={port}", "-m", "megagpt", *settings], log)
    job.wait_for(lambda: job.steps(tmp_path / "run") > 2, process, log)
    found = listeners([process.pid, *job.ranks_of(process.pid)])
    assert port in {number for _, number in found}
    assert {address for address, _ in found} == {"0100007F"}  # 127.0.0.1, in the order of this machine's bytes
    with contextlib.ExitStack() as clients:
        for number in range(100):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 10 == 0:
                client.sendall(os.urandom(300))
        assert process.wait(timeout=job.PATIENCE) == 0, log.read_text()

    plain = [*job.settings(overrides, tmp_path, "plain", steps=100), "checkpoint.interval=0", "parallel=data"]
    process = job.start(job.command(2, plain), tmp_path / "plain.log")
    assert process.wait(timeout=job.PATIENCE) == 0, (tmp_path / "plain.log").read_text()
    assert job.losses(tmp_path / "run") == job.losses(tmp_path / "plain")
