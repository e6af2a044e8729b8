"""The process with the models and the process that listens: neither outlives the other."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.serve.real import Command, save_models


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("runs"))["text"]


def listener_of(served: Command) -> int:
    """Its process id."""
    pid = served.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert b"megagpt.serve.listener" in Path(f"/proc/{child}/cmdline").read_bytes()
    return int(child)


@pytest.mark.slow
def test_a_killed_listener_ends_the_server_which_says_so(run):
    served = Command(run, key=None)
    os.kill(listener_of(served), signal.SIGKILL)
    assert served.wait() == 1
    assert "the process that listens ended with SIGKILL" in served.log
    assert "Traceback" not in served.log


@pytest.mark.slow
def test_a_killed_server_ends_its_listener(run):
    served = Command(run, key=None)
    listener = listener_of(served)
    served.process.kill()
    served.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{listener}/cmdline").exists() and Path(f"/proc/{listener}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")


@pytest.mark.slow
def test_ctrl_c_lets_running_requests_finish(run):
    served = Command(run, key=None)
    body = {"model": "text", "prompt": "the", "max_tokens": 30, "stream": True, "logit_bias": {"261": -100}}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as stream:
        lines = filter(None, stream.iter_lines())
        first = next(lines)
        served.process.send_signal(signal.SIGINT)
        *_, last = [first, *lines]
    assert last == "data: [DONE]"
    assert served.wait() == 0
    assert "Traceback" not in served.log
