"""`megagpt embed` with a model of random weights, on one rank and on several."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megagpt import cli
from megagpt.config.schema import Config, ModelConfig, OptimConfig
from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, Interrupted
from tests.runs import save_random_run

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "on", "the", "log"]
TEXTS = [" ".join(WORDS[n % 7 : n % 11 + 2]) + f" {n}" for n in range(90)] + ["the cat sat " * 30]
SIZE = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 48, "init_std": 0.3}
LAYOUTS = {
    "data": [],
    "tensor": ["--tensor-parallel-size", "2"],
    "pipeline": ["--pipeline-parallel-size", "2"],
}


def make_run(folder: Path, head: str) -> Path:
    config = Config(model=ModelConfig(**SIZE, head=head), optim=OptimConfig(precision="fp32"))
    return save_random_run(folder, config, train_tokenizer([" ".join(WORDS) * 5], 280))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    make_run(folder / "run", "embedding")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def words(folder: Path, name: str, *more: str) -> list[str]:
    return ["embed", "--checkpoint", f"{folder}/run", f"{folder}/texts.jsonl", "--output", f"{folder}/{name}", *more]


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    assert cli.run(words(folder, "one.npy")) == 0
    return np.load(folder / "one.npy")


def test_vectors_of_a_model(folder, expected):
    assert expected.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    assert len(np.unique(expected.round(5), axis=0)) == len(set(TEXTS))
    assert json.loads((folder / "one.npy.meta.json").read_text())["truncated"] == 1
    assert cli.run(words(folder, "query.npy", "--side", "query", "--dimensions", "8", "--micro-batch-size", "1")) == 0
    queries = np.load(folder / "query.npy")
    assert queries.shape == (len(TEXTS), 8)
    assert np.abs(queries - expected[:, :8]).max() > 0.01


def test_an_index_of_a_model_finds_its_own_texts(folder, megagpt):
    index = folder / "index"
    megagpt("search", "index", folder / "texts.jsonl", "--checkpoint", folder / "run", "--output", index)
    (answer,) = map(json.loads, megagpt("search", "ask", index, TEXTS[5], "--top", "91", "--json").split("\n")[:-1])
    scores = [one["score"] for one in answer["results"]]
    assert len(scores) == len(TEXTS) and scores == sorted(scores, reverse=True)


def test_a_generative_checkpoint_is_refused_and_leaves_nothing(folder, tmp_path):
    run = make_run(tmp_path / "run", "tokens")
    with pytest.raises(ConfigError, match="has a tokens head"):
        cli.run(["embed", "--checkpoint", str(run), f"{folder}/texts.jsonl", "--output", f"{tmp_path}/v.npy"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_vectors_of_one_rank(folder, expected, layout):
    more = ["--nproc-per-node", "2", *LAYOUTS[layout], "--micro-batch-size", "2"]
    subprocess.run([sys.executable, "-m", "megagpt.cli", *words(folder, f"{layout}.npy", *more)], check=True)
    np.testing.assert_allclose(np.load(folder / f"{layout}.npy"), expected, atol=1e-5)


@pytest.mark.slow
def test_an_error_of_two_ranks_is_said_once(folder, tmp_path):
    command = [sys.executable, "-m", "megagpt.cli", *words(folder, "bad.npy", "--nproc-per-node", "2")]
    (tmp_path / "bad.jsonl").write_text('{"text": ""}\n')
    command[command.index(f"{folder}/texts.jsonl")] = f"{tmp_path}/bad.jsonl"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.count("bad.jsonl:1: empty") == 1 and "Traceback" not in done.stderr


BLOCKS = (
    "import sys; from megagpt.evaluate import vectors; vectors.BLOCK_TEXTS = 4; from megagpt.cli import main; main()"
)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_what_was_killed_goes_on(folder, expected, sign):
    name = f"killed{sign}.npy"
    command = [sys.executable, "-c", BLOCKS, *words(folder, name)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    parts = folder / f"{name}.parts"
    while len(list(parts.glob("*.npy"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sign)
    said = process.communicate()[1]
    assert not (folder / name).exists()
    if sign == signal.SIGINT:
        assert process.returncode == Interrupted.exit_code
        assert "Traceback" not in said and "the same command goes on" in said
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "of 91 texts are embedded already" in done.stderr
    np.testing.assert_allclose(np.load(folder / name), expected, atol=1e-5)
