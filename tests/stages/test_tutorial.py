"""The commands of docs/tutorial.md in their order, at toy size, with the documentation as the text of one's own."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import transformers

from megagpt.config.load import load
from megagpt.plan.devices import load_devices
from megagpt.plan.job import Job
from megagpt.plan.run import estimate
from tests.rehearsal import DOCS, ENVIRONMENT, blocks, commands, run
from tests.test_docs_figures import table

PAGE = "tutorial.md"
TOY = (
    "logging.wandb=off model.vocab_size=400 model.num_layers=2 model.hidden_size=32 model.num_attention_heads=2"
    " model.sequence_length=256 model.attention_window=64 optim.precision=fp32 optim.lr=1e-3 optim.global_batch_size=4"
    " optim.ramp_start=null parallel.micro_batch_size=1 data.split=[0.7,0.3,0]"
)
TOY_OF = {
    "pretrain": "optim.train_tokens=4096",
    "sft": "optim.train_epochs=1",
    "ppo": "ppo.critic_parallel=null ppo.reward_parallel=null ppo.rollout_batch_size=4 ppo.max_prompt_tokens=128"
    " ppo.max_new_tokens=8 ppo.episodes=8",
    "embed": "embed.max_tokens=64",
}
"""By the first word of the recipe's name."""
SMALLER = {
    "--nproc-per-node 8": "--nproc-per-node 1",
    "--workers 8": "--workers 1",
    "--gpus 8": "--gpus 1",
    "--vocab-size 50257": "--vocab-size 384",
    "megagpt data instructions": "megagpt data instructions --count 24",
    "megagpt evaluate": "megagpt evaluate limit=4",
    "--max-new-tokens 64": "--max-new-tokens 8",
}
SERVER_STARTS = 300
"""Seconds, on a busy machine."""


def toy(line: str) -> str:
    """A command of the page with the sizes of a toy, by the table at the end of the page."""
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    recipe = re.search(r"^megagpt (?:train|plan) .*experiment=([a-z]+)_", line)
    return f"{line} {TOY} {TOY_OF.get(recipe[1], '')}" if recipe else line


def write_texts(folder: Path) -> None:
    """The paragraphs of the documentation without tables, lists and commands, some to a document."""
    folder.mkdir()
    with (folder / "docs.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted(DOCS.glob("*.md")):
            page = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            found = [" ".join(part.split()) for part in page.split("\n\n") if re.match(r"[A-Z`*]", part)]
            for start in range(0, len(found), 4):
                file.write(json.dumps({"text": "\n".join(found[start : start + 4])}) + "\n")


def serve_and_ask(command: str, program: str, folder: Path) -> str:
    """What the page's program prints beside the page's server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = (folder / "server.txt").open("w")
    server = subprocess.Popen(
        command.replace("8000", port).split(), cwd=folder, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(SERVER_STARTS):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.txt").read_text()
                time.sleep(1)
        asked = [sys.executable, "-c", program.replace("8000", port)]
        done = subprocess.run(asked, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    finally:
        server.terminate()
        code = server.wait(60)
        log.close()
    assert code == 0, (folder / "server.txt").read_text()
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path):
    write_texts(tmp_path / "texts")
    printed = {}
    for line in map(toy, commands(PAGE)):
        if line.startswith("megagpt serve"):
            (program,) = blocks(PAGE, "python")
            assert serve_and_ask(line, program, tmp_path).splitlines()[-1] == "32"
        else:
            printed[line] = run(line, tmp_path)
    held_out = json.loads((tmp_path / "runs/pretrain_1_3b/evaluation.json").read_text())
    assert {"bits_per_byte", "xz_9_bits_per_byte"} <= held_out.keys()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 24
    assert any(text.rstrip().endswith("everything is in place") for text in printed.values())
    for run_name in ("sft_1_3b", "embed_text_1_3b"):
        assert (tmp_path / "runs" / run_name / "evaluation_before.json").exists()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "chat_hf")
    assert model.config.hidden_size == 32


def test_figures_are_those_of_the_plan():
    rows = table("tutorial", "stage", "command that printed it")
    assert len(rows) == 5
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    for _, command, memory, seconds in rows:
        words = command.strip("`").split()
        assert words[:2] + words[3:] == ["megagpt", "plan", "--gpus", "8", "--device", "h100"]
        plan = estimate(Job(load([words[2]]), 8), load_devices()["H100-80"])
        assert (memory, seconds) == (f"{plan.peak_bytes / 2**30:.1f}", f"{plan.step_seconds:.3f}")
        assert f"{seconds} s a step" in text
    plan = estimate(Job(load(["experiment=pretrain_1_3b", "optim.train_tokens=26e9"]), 8), load_devices()["H100-80"])
    assert f"{plan.days:.1f} days and {plan.gpu_hours:.0f} GPU-hours" in text
    plan = estimate(Job(load(["experiment=ppo_1_3b"]), 8), load_devices()["H100-80"])
    assert f"{plan.days:.1f} days for the recipe's {plan.job.config.ppo.episodes:,} episodes" in text
