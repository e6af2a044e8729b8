"""`megagpt serve` on two ranks, one of which dies."""

import json
import os
import signal

import httpx
import pytest

from tests.faults.job import ranks_of
from tests.serve.real import Command, save_models


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_server_and_every_stream(killed, tmp_path):
    """The process that listens outlives both for a moment, and says in each stream that the models have failed."""
    served = Command(save_models(tmp_path)["text"], "--nproc-per-node", 2, "--tensor-parallel-size", 2, key=None)
    body = {"model": "text", "prompt": [[one] for one in range(60)], "max_tokens": 30, "stream": True}
    body["logit_bias"] = {"261": -100}  # the end of a text, so that they are long
    lines = []
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=120) as stream:
        coming = filter(None, stream.iter_lines())
        lines.append(next(coming))
        os.kill(sorted(ranks_of(served.process.pid))[killed], signal.SIGKILL)
        lines += coming
    assert served.wait() != 0
    assert f"rank {killed} on " in served.log and "ended by SIGKILL" in served.log
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/health")
