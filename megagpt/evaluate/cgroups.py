"""Control groups around a box, where this process may make them: they hold for all its processes together."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")

_FILES = {"pids": ("pids.max", "pids.max"), "memory": ("memory.limit_in_bytes", "memory.max")}
"""The file with a controller's limit: in version 1, and in version 2."""

_numbers = itertools.count()


@contextmanager
def control_groups(limits: dict[str, int]) -> Iterator[list[Path]]:
    """Make groups with `limits` ({"pids": processes, "memory": bytes}); removed at the end, with its processes gone.

    Yields the files that a process joins by writing its id to them, one for each hierarchy; a controller that cannot
    be used here is left out.
    """
    name = f"megagpt-{os.getpid()}-{next(_numbers)}"
    made: dict[Path, None] = {}
    try:
        for controller, limit in limits.items():
            folder, file = _place(controller)
            try:
                (folder / name).mkdir(exist_ok=True)
                made[folder / name] = None
                (folder / name / file).write_text(str(limit))
            except OSError:  # not ours to make
                continue
        yield [group / "cgroup.procs" for group in made]
    finally:
        for group in made:
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a group once its killed processes have ended."""
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.002)


def _place(controller: str) -> tuple[Path, str]:
    """Folder in which groups for `controller` are made, and the name of their file with its limit."""
    version1, version2 = _FILES[controller]
    hierarchy = ROOT / controller
    return (hierarchy, version1) if hierarchy.is_dir() else (ROOT, version2)
