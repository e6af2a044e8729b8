"""A process for what may hang, die or eat memory: what is said of each, and that the next call is answered."""

import os
import signal
import subprocess
import sys
import time

import pytest

from megagpt.data.corpus.text.inputs.sandbox import Failed, Sandbox
from megagpt.errors import ConfigError

UPPER = "lambda work: work.decode().upper()"
"""eval makes the function of its source."""


def sandbox(function: str, seconds: float = 0.5, **limits) -> Sandbox:
    """`function` where the work is b"do"; otherwise UPPER."""
    source = f"lambda work: ({function})(work) if work == b'do' else ({UPPER})(work)"
    return Sandbox("builtins:eval", source, seconds, **{"memory": 100 << 20} | limits)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("lambda _: [0 for _ in iter(int, 1)]", "takes more than 0.5 s of CPU time"),
        ("lambda _: __import__('re').match('(a+)+$', 'a' * 40 + 'b')", "takes more than 0.5 s"),  # within C
        ("lambda _: __import__('os').abort()", "died of SIGABRT"),
        ("lambda _: __import__('os')._exit(3)", "ended with exit code 3"),
        ("lambda _: bytes(1 << 30).hex()", "needs more than 100 MiB of memory"),
        ("lambda _: 1 / 0", "ZeroDivisionError: division by zero"),
        ("lambda _: __import__('sys').exit(4)", "ended with exit code 4"),
    ],
)
def test_every_end_is_named_and_the_next_call_is_answered(function, reason):
    with sandbox(function) as box:
        assert box(b"before") == "BEFORE"
        with pytest.raises(Failed, match=reason):
            box(b"do")
        assert box(b"after") == "AFTER"


def test_time_for_which_it_does_not_compute_does_not_count_but_has_an_end():
    with sandbox("lambda _: __import__('time').sleep(1) or 'slept'", seconds=0.5) as box:
        assert box(b"do") == "slept"
        assert box.cpu_seconds < 0.5
    with sandbox("lambda _: __import__('time').sleep(1000)", patience=3) as box:
        with pytest.raises(Failed, match="did not answer in 3 s"):
            box(b"do")
        assert box(b"after") == "AFTER"


def test_cpu_time_is_counted():
    with sandbox("lambda _: str(sum(range(5_000_000)))", seconds=20) as box:
        box(b"do")
        once = box.cpu_seconds
        for _ in range(4):
            box(b"do")
    assert 2 * once < box.cpu_seconds < 20 * once


def test_large_pieces_of_work_and_text_that_is_no_text():
    with Sandbox("builtins:eval", "lambda work: str(len(work)) + chr(0xd800)", 5) as box:
        assert box(bytes(30_000_000)) == "30000000?"


def test_one_process_serves_all_calls_and_is_gone_at_the_end():
    with Sandbox("builtins:eval", "lambda _: str(__import__('os').getpid())") as box:
        (process,) = {box(b"") for _ in range(20)}
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_memory_that_was_taken_leaves_the_next_call_its_room():
    function = "lambda work: len(b'x' * int(work)) and None or str(__import__('os').getpid())"
    with Sandbox("builtins:eval", function, memory=200 << 20) as box:
        small = [box(b"1000000") for _ in range(3)]
        large = [box(b"100000000") for _ in range(3)]
        with pytest.raises(Failed, match="memory"):
            box(b"300000000")
        assert len({*small}) == 1 and len({*large}) == 3 and large[0] == small[0]


def test_memory_that_a_function_hides_to_have_missed_counts():
    hides = "lambda work: [b'x' * (n << 20) and None for n in range(1, 190, 20)] and 'half a text'"
    with Sandbox("builtins:eval", hides, memory=100 << 20) as box, pytest.raises(Failed, match="100 MiB"):
        box(b"")


def test_what_the_function_prints_harms_nothing():
    with Sandbox("builtins:eval", "lambda work: print('x' * 100_000) or work.decode()") as box:
        assert [box(b"a"), box(b"b")] == ["a", "b"]


def test_a_function_that_cannot_be_made_is_told_to_people():
    with pytest.raises(ConfigError, match="no_such_module"), Sandbox("no_such_module:make") as box:
        box(b"")


def test_a_process_whose_caller_was_killed_ends():
    caller = """
import time
from megagpt.data.corpus.text.inputs.sandbox import Sandbox
box = Sandbox("builtins:eval", "lambda w: __import__('os').getpid().__str__() if w else [0 for _ in iter(int, 1)]", 0.5)
print(box(b"x"), flush=True)
HANG
"""
    for hang in ("time.sleep(1000)", "box(b'')"):  # idle, and in the midst of a call that never ends
        command = [sys.executable, "-c", caller.replace("HANG", hang)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            child = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 120
        while alive(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(child)


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
