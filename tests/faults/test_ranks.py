"""F18 to F21, F25: a rank that dies, stops, hangs or fails is named, and the job goes on as if nothing had been."""

import re
import signal
import time
from pathlib import Path

import pytest
import torch

from megagpt.errors import CheckpointError, RepeatedFailure
from tests.faults import job

STEPS = 45
TIMEOUT, HEARTBEAT = 12.0, 5.0  # a rank that gives no sign of life is to be noticed as that
OFTEN = ("kill@3@1", "stop@7@1", "exception@11@1", "forward@19@1", "lock@23@0", "optimizer@31@1", "save@40@1")
"""Those that are tried every time; the others fail in the same ways in other sections."""

FAULTS = {
    # fault@step@rank: the section that the log says the rank is in, or the time-out that was over where it is silent;
    # None where the launcher and not the watchdog sees it
    "kill@3@1": None,
    "stop@7@1": "reliability.heartbeat_timeout",
    "exception@11@1": None,
    "load@15@0": "load",
    "forward@19@1": "forward",
    "lock@23@0": "reliability.heartbeat_timeout",
    "mismatch@27@1": None,  # gloo notices it, or hangs, as it comes
    "optimizer@31@1": "optimizer",
    "evaluation@34@0": "evaluation",
    "backward@37@1": "backward",
    "save@40@1": "save",
}


def fast(overrides: list[str], folder: Path, name: str, *more: str) -> list[str]:
    limits = [
        f"reliability.{section}_timeout={TIMEOUT}"
        for section in ("load", "forward", "backward", "optimizer", "evaluation", "save")
    ]
    limits.append(f"reliability.heartbeat_timeout={HEARTBEAT}")
    saving = ["checkpoint.interval=5", "stage.eval_interval=17", "stage.eval_tokens=256", "parallel=data"]
    return [*job.settings(overrides, folder, name, STEPS), *saving, *limits, *more]


def noticed(stacks: Path, step: str) -> float:
    """When the hang in a step was written down, at the latest: the file tells whole seconds."""
    (text,) = re.findall(rf"\n==== (.{{19}}), rank 0: step {step}:", (stacks / "rank_00000.txt").read_text())
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S")) + 1


def hangs(log: str) -> list[str]:
    """What the watchdogs said, once a hang."""
    return [line for line in log.splitlines() if "critical: step" in line]


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_f18_to_f21_every_fault_in_one_job(thorough, overrides, tmp_path):
    faults = {fault: named for fault, named in FAULTS.items() if thorough or fault in OFTEN}
    whole = job.start(job.command(2, fast(overrides, tmp_path, "whole")), tmp_path / "whole.log")
    assert whole.wait(timeout=job.PATIENCE) == 0, (tmp_path / "whole.log").read_text()
    markers, log = tmp_path / "markers", tmp_path / "log"
    markers.mkdir()
    program = (str(job.INJECT), str(markers), *faults, "--")
    restarts = {"max_restarts": len(faults) + 3}
    process = job.start(job.command(2, fast(overrides, tmp_path, "run"), program, **restarts), log)
    assert process.wait(timeout=4 * job.PATIENCE) == 0, log.read_text()
    assert {path.name for path in markers.iterdir()} == set(faults)

    tensors, state = job.tensors(tmp_path / "whole")
    tensors_after, state_after = job.tensors(tmp_path / "run")
    assert state == state_after
    assert all(torch.equal(tensors[name], tensors_after[name]) for name in tensors)
    assert job.losses(tmp_path / "whole") == job.losses(tmp_path / "run")

    said, stacks = hangs(log.read_text()), tmp_path / "run" / "stacks"
    for fault, named in faults.items():
        _, step, rank = fault.split("@")
        if named is None:
            continue
        (line,) = {line.partition("critical: ")[2] for line in said if f"critical: step {step}:" in line}
        heartbeat = named.startswith("reliability.")
        assert f"Held up by rank {rank} ({'' if heartbeat else named}" in line, (fault, line)
        assert named in line, (fault, line)
        seconds = noticed(stacks, step) - float((markers / fault).read_text())
        print(f"{fault}: noticed and named after at most {seconds:.1f} s")
        assert seconds < 3 * (HEARTBEAT if heartbeat else TIMEOUT), fault
        for file in ("rank_00000.txt", "rank_00001.txt"):  # the stacks of all ranks, of this hang
            after = (stacks / file).read_text().partition(f"step {step}:")[2]
            assert re.search(r"\n(Current t|T)hread 0x", after.partition("\n====")[0]), (fault, file)
    assert "ValueError: injected" in log.read_text()


@pytest.mark.slow
def test_f25_the_same_step_again_and_again_ends_the_job(overrides, tmp_path):
    """Rank 1 finds no memory (F21): its own error is told, and the one of the rank that waited for it never first."""
    log, markers = tmp_path / "log", tmp_path / "markers"
    markers.mkdir()
    program = (str(job.INJECT), str(markers), "memory@7@1!", "--")
    settings = fast(overrides, tmp_path, "run", "reliability.max_failures=2")
    process = job.start(job.command(2, settings, program, max_restarts=2), log)
    assert process.wait(timeout=job.PATIENCE) != 0
    text = log.read_text()
    assert text.count("resumed at step 5") == 1  # the third attempt is not made
    assert "2 attempts in a row failed in step 7, which trains on samples 48 to 55" in text
    assert f"exitcode  : {RepeatedFailure.exit_code}" in text
    assert text.count("RuntimeError: [enforce fail at alloc_cpu.cpp") == 2  # once an attempt


@pytest.mark.slow
def test_f16_f25_a_second_job_is_refused_and_no_orphans_are_left(overrides, tmp_path):
    log, second_log = tmp_path / "log", tmp_path / "second"
    settings = [*job.settings(overrides, tmp_path, "run", steps=100_000), "parallel=data"]
    process = job.start(job.command(2, settings), log)
    job.wait_for(lambda: job.steps(tmp_path / "run") > 2, process, log)
    second = job.start(job.command(1, settings), second_log)
    assert second.wait(timeout=job.PATIENCE) == CheckpointError.exit_code
    assert "another run is writing checkpoints in" in second_log.read_text()
    assert process.poll() is None  # the first goes on
    ranks = job.ranks_of(process.pid)
    process.send_signal(signal.SIGKILL)
    job.wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks))
