"""`megagpt report` of a run where none of the optional libraries is installed."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # importing it fails
sys.argv = ["megagpt", "report", {folder!r}]
from megagpt.cli import main
main()
"""


def test_a_run_is_reported_without_optional_libraries(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {re.split(r"[^\w.-]", name)[0].lower() for name in project["dependencies"]}
    extras = {re.split(r"[^\w.-]", one)[0].lower() for of in project["optional-dependencies"].values() for one in of}
    names = sorted(name.replace("-", "_") for name in extras - base if not name.startswith("megagpt"))
    assert "xxhash" in names
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": 8, "loss": 2.0}) + "\n")
    command = [sys.executable, "-c", WITHOUT.format(names=names, folder=str(run))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()
