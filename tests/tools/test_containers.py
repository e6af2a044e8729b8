"""The container files: what they copy exists and is enough to install, and what they install has a name."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from megagpt import cli

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tools/containers").glob("*.Dockerfile"))
Instruction = tuple[str, list[str]]


def instructions(file: Path) -> list[Instruction]:
    """Names and words of all instructions; those in JSON's form give their items."""
    found = []
    for line in file.read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            words = json.loads(rest[rest.index("[") :]) if re.search(r'^[^"]*\["', rest) else shlex.split(rest)
            found.append((name, words))
    return found


def copied(file: Path) -> list[tuple[str, str]]:
    """Sources in the checkout, and where each goes."""
    words = [words for name, words in instructions(file) if name == "COPY" and not words[0].startswith("--from")]
    return [(source, target) for *sources, target in words for source in sources]


def test_there_is_one_for_serving_and_one_for_training():
    assert [file.name for file in FILES] == ["serve.Dockerfile", "train.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_and_installed_exists(file):
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source, _ in copied(file):
        assert (ROOT / source).exists() and source not in ignored, source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [words for name, words in instructions(file) if name == "RUN" and words[:2] == ["pip", "install"]]
    assert all(words[words.index("--constraint") + 1] == "constraints.txt" for words in installs)
    wanted = re.fullmatch(r"\.\[(.+)\]", installs[-1][-1])[1].split(",")
    assert wanted and set(wanted) <= set(extras)
    assert "serve" in wanted


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_last_stage_is_small_and_not_root(file):
    every = instructions(file)
    stages = [number for number, (name, _) in enumerate(every) if name == "FROM"]
    assert len(stages) == 2
    last = every[stages[-1] :]
    assert [words for name, words in last if name == "COPY"] == [["--from=build", "/opt/megagpt", "/opt/megagpt"]]
    user = next(words for name, words in last if name == "USER")
    assert user == ["megagpt"]
    names = [name for name, _ in last]
    assert "RUN" not in names[names.index("USER") :]
    (command,) = [words for name, words in last if name == "ENTRYPOINT"]
    assert cli.run([*command[1:], "--help"]) == 0


def test_what_is_copied_is_enough_to_install(tmp_path):
    assert copied(FILES[0]) == copied(FILES[1])
    for source, target in copied(FILES[0]):
        there = tmp_path / "build" / (source if target == "./" else target)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            there.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, there)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*words, "--wheel-dir", tmp_path, tmp_path / "build"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"megagpt/serve/page/index.html", "megagpt/configs/experiment/demo.yaml", "megagpt/cli/serve.py"} <= inside
