"""Runs the commands of a page of the docs as they stand there, at toy size."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "HYDRA_FULL_ERROR": "1",
    "OMP_NUM_THREADS": "1",
}
"""Of the commands: `megagpt` is the one beside this Python, and a rank has one thread."""


def blocks(page: str, language: str = "bash") -> list[str]:
    """The page's fenced blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of the page's blocks of commands; a continued line is one."""
    return "".join(blocks(page)).replace("\\\n", " ").splitlines()


def rehearse(page: str, folder: Path, toy: Callable[[str], str]) -> None:
    """Run every command of the page in `folder`, each changed by `toy`. The first that fails ends it."""
    for line in commands(page):
        run(toy(line), folder)


def run(command: str, folder: Path) -> str:
    """What a command of a shell prints. Fails when it does not end with exit code 0."""
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
