"""What the demo's targets say at their end."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megagpt.cli.serve import by_name
from megagpt.config.inputs import inputs
from megagpt.config.load import load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("made", "further"), [((), []), (("embed", "edit", "code"), ["code", "edit", "embed"])])
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
    assert by_name(tuple(command.split())) == {name: Path("runs", name) for name in ("ppo", *further)}
    assert "open http://127.0.0.1:8000/" in said.stdout


def planned(target: str, folder: Path, *settings: str) -> subprocess.CompletedProcess:
    """The commands that make would run for a target where only the installation is there."""
    shutil.copy(ROOT / "Makefile", folder)
    done = [f".venv/installed{kind}" for kind in ("", "-serve")]
    for file in done:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    options = [option for file in done for option in ("-o", file)]
    return subprocess.run(["make", "-n", *options, *settings, target], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_run_of_the_chain_is_an_experiment_whose_inputs_the_chain_makes(device, tmp_path):
    said = "".join(planned(target, tmp_path, f"DEVICE={device}").stdout for target in ("code", "chatgpt"))
    experiments = list(dict.fromkeys(re.findall(r"experiment=(\w+)", said)))
    assert len(experiments) == 6
    made = set(re.findall(r"(?:--output|-o) (\S+)", said)) | {
        f"{folder}/{name}.jsonl"
        for folder in re.findall(r"--output-dir (\S+)", said)
        for name in ("conversations", "rankings", "prompts")
    }
    for name in experiments:
        config = load([f"experiment={name}"])
        for found in inputs(config):
            assert found.path in made, (name, found)
        made.add(config.run_dir)
    assert {load([f"experiment={name}"]).model.name for name in experiments} == (
        {"demo_rope"} if device == "cpu" else {"demo_125m"}
    )


def test_a_device_of_another_name_is_refused(tmp_path):
    done = planned("train", tmp_path, "DEVICE=tpu")
    assert done.returncode != 0
    assert 'DEVICE is "tpu"; it must be cpu or cuda' in done.stderr
