"""What the demo's targets say at their end."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megagpt.cli.serve import by_name

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("made", "further"), [((), []), (("embed", "edit"), ["edit", "embed"])])
def test_make_chatgpt_says_how_to_open_the_page_with_the_models_that_exist(made, further, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in made:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "evaluation.json").touch()
    done = ["-o", "runs/chatgpt/report.html", "-o", ".venv/installed-serve"]
    for file in done[1::2]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    said = subprocess.run(["make", "-n", *done, "chatgpt"], cwd=tmp_path, capture_output=True, text=True, check=True)
    command = re.search(r"megagpt serve ([^\"]+)", said.stdout)[1]
    assert by_name(tuple(command.split())) == {name: Path("runs", name) for name in ("ppo", "code", *further)}
    assert "open http://127.0.0.1:8000/" in said.stdout
