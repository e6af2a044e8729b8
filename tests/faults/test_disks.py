"""F09, F35: disks that are full while a run trains, for its checkpoints and for all else that it writes."""

import logging
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from dist import run_distributed

from megagpt.checkpoint import find_newest
from megagpt.errors import CheckpointError
from megagpt.parallel import launch
from tests.faults import job

STEPS = 40  # metrics of a few steps still fit on the page that their file has


@contextmanager
def disk(path: Path, size: str):
    """A disk of its own at a path; skips the test where this user may not mount one."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _refused_save(overrides: list[str], name: str, *more: str) -> tuple[str, int, list[str]]:
    """What the run said when it could not save, after which step, and what is in the folder then."""
    with pytest.raises(CheckpointError) as caught, job.opened([*overrides, f"run_name={name}", *more]) as trainer:
        trainer.stage.fit(trainer)
    launch.leave_groups()
    left = sorted(path.name for path in (trainer.stage.run_dir / "checkpoints").iterdir())
    return str(caught.value), trainer.state.step, left


def _no_room_for_logs(overrides: list[str]) -> tuple[int, list[str]]:
    """Train while there is no room for metrics and logs in most steps; the last step and the warnings."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    with job.opened([*overrides, "run_name=logs"]) as trainer:
        filler, begin_step = trainer.stage.run_dir / "filler", trainer.begin_step
        logging.getLogger().addHandler(handler)

        def watched():
            if trainer.state.step == 1:
                with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1024))
            if trainer.state.step == STEPS - 5:
                filler.unlink()
            return begin_step()

        trainer.begin_step = watched
        trainer.stage.fit(trainer)
    launch.leave_groups()
    return trainer.state.step, said


def _full_disks(overrides: list[str]) -> tuple:
    refused = _refused_save(overrides, "now"), _refused_save(overrides, "later", "checkpoint.asynchronous=true")
    with job.opened([*overrides, "run_name=plain"]) as trainer:
        trainer.stage.fit(trainer)
    launch.leave_groups()
    return *refused, *_no_room_for_logs(overrides)


def test_f09_f35_full_disks(overrides, tmp_path):
    settings = [*job.settings(overrides, tmp_path, "run", STEPS), "checkpoint.interval=2"]
    with ExitStack() as disks:
        sizes = {"now/checkpoints": "3m", "later/checkpoints": "3m", "logs": "64k", "logs/checkpoints": "16m"}
        for path, size in sizes.items():
            disks.enter_context(disk(tmp_path / path, size))
        ((now, later, last, said),) = run_distributed(_full_disks, 1, settings)
        for message, step, left in (now, later):
            assert "no space left on the disk (ENOSPC" in message
            assert 4 <= step <= 6  # the save of step 4 fails; one in the background is waited for by the next
            assert left == [".run_lock.json", "latest", "step_00000002"]
        assert now[1] == 4
        for name in ("now", "later"):
            assert find_newest(tmp_path / name / "checkpoints").name == "step_00000002"
        assert last == STEPS
        assert job.losses(tmp_path / "logs") == job.losses(tmp_path / "plain")  # what found no room came later
        assert len([line for line in said if "metrics.jsonl" in line]) == 1, said
