"""The wheel alone, in an environment without a checkout: from files of text to a report, with the installed command."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "to", "the", "log", "by", "the", "sea"]
MODEL = ["model=tiny", "model.vocab_size=300", "model.sequence_length=32"]
DATA = ["data.tokenizer=tokenizer.json", "data.corpora=[{path: data/text}]", "data.split=[0.8,0.1,0.1]"]
OPTIM = ["optim=demo", "optim.global_batch_size=4", "optim.train_tokens=512", "stage.eval_interval=0"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder of the commands of an environment that has the wheel, and everything else from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a checkout may hold what an earlier build left
    for name in ("megagpt", "kernels", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", *folder.glob("*.whl")], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    # The folder alone: `site` does not obey the .pth files there, of which one leads to the checkout.
    (own / "peers.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Calls the installed command in an empty folder and returns what it prints."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: object, program: str = "megagpt") -> str:
        done = subprocess.run(
            [str(installed / program), *map(str, arguments)],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert not [word for word in ("Warning", "Traceback", "WARNING") if word in done.stderr], done.stderr
        return done.stdout

    call.folder = folder
    return call


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_has_every_task_file(installed):
    (wheel,) = installed.parents[1].glob("*.whl")
    tasks = {str(path.relative_to(ROOT)) for path in (ROOT / "megagpt/evaluate/in_context/tasks").rglob("*.yaml")}
    assert "megagpt/evaluate/in_context/tasks/rules/_rules.yaml" in tasks
    assert tasks <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_text_to_report(run):
    where = Path(run("-c", "import megagpt; print(megagpt.__file__)", program="python").strip())
    assert ROOT not in where.parents and where.parts[-3] == "site-packages"

    texts = [" ".join((WORDS[start:] + WORDS) * 4) for start in range(len(WORDS))]
    files = [f"text{number}.jsonl" for number in range(5)]
    for name in files:
        (run.folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 3))
    run("data", "tokenizer", *files, "--vocab-size", 300, "--output", "tokenizer.json")
    assert "documents" in run("data", "preprocess", *files, "--tokenizer", "tokenizer.json", "--output", "data/text")

    settings = [*MODEL, *DATA, *OPTIM, "run_name=first", "parallel=data"]
    assert json.loads(run("plan", *settings, "--gpus", 2, "--json"))["fits"]
    assert "everything is in place" in run("plan", *settings, "--check", "--nproc-per-node", 2)
    run("train", "--nproc-per-node", 2, *settings)
    said = run("generate", "--checkpoint", "runs/first", "--prompt", "the cat", "--max-new-tokens", 3)
    assert said.startswith("the cat")
    assert "runs/first/report.html" in run("report", "runs/first")
    assert "plotly" in (run.folder / "runs/first/report.html").read_text()
    asked = ("tasks=[rules_words]", "shots=[0,1]", "limit=2", "output=tasks")  # questions that are made, not read
    assert run("evaluate", *asked, "checkpoint=runs/first").count("2 examples") == 2
    assert "tasks/report.html" in run("report", "tasks")
    facts = json.loads(run("checkpoint", "inspect", "runs/first", "--json"))
    assert facts["model"]["vocab_size"] == 300
    run("checkpoint", "convert", "runs/first", "hf", "--to", "huggingface")
    assert (run.folder / "hf/model.safetensors").exists()

    run("data", "tokenizer", "--extend", "tokenizer.json", "--add", "chat", "--output", "chat.json")
    run("data", "instructions", "--count", 6, "--output-dir", "talk")
    shown = run("data", "preview", "talk/conversations.jsonl", "--tokenizer", "chat.json", "--sequence-length", 256)
    assert "<|assistant|>[[" in shown
