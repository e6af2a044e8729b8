"""The command line: every format from every layout, its proof, and that what is interrupted leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dist import run_distributed

from megagpt import cli
from megagpt.checkpoint.convert import native
from megagpt.checkpoint.convert.convert import FORMATS, convert
from megagpt.errors import CheckpointError

GPT_NEO = [
    "model=tiny",
    "model.num_layers=4",
    "model.vocab_size=301",
    "model.sequence_length=32",
    "model.attention_pattern=[dense,banded]",
    "model.attention_window=9",
    "parallel.micro_batch_size=2",
]
GPT2 = [*GPT_NEO, "model.attention_pattern=[dense]"]
LLAMA = [
    *GPT2,
    "model.position_embedding=rope",
    "model.normalization=rmsnorm",
    "model.activation=swiglu",
    "model.bias=false",
    "model.num_query_groups=4",
    "model.num_attention_heads=8",
    "model.tie_embeddings=false",
]
ROOT = Path(__file__).parents[3]


def save(overrides: list[str], layouts: list[list[str]], folder: Path) -> None:
    """Save a model and its optimizer after one step, in each layout. Collective."""
    import torch.distributed as dist

    from megagpt.checkpoint import Checkpointer
    from megagpt.config.load import load, to_dict
    from megagpt.data.batch import Batch
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective
    from megagpt.train.state import TrainState

    for number, layout in enumerate(layouts):
        config = load([*overrides, *layout, "optim.precision=fp32", "data.corpora=[]"])
        launch.initialize(config.parallel, config.seed)
        engine = build_engine(config, LanguageModelObjective())
        tokens = torch.arange(64).view(2, 32) % 301
        positions = torch.arange(32).expand(2, -1).contiguous()
        batch = Batch(tokens, tokens, torch.ones(2, 32), positions)
        engine.train_step(iter([batch] * 4), 4, 0.0)  # which changes the moments alone
        manifest = {"run": "test", "config": to_dict(config), "layout": {}}
        run = folder / f"{dist.get_world_size()}-{number}"
        with Checkpointer(run / "checkpoints", config.checkpoint) as checkpointer:
            checkpointer.save(1, engine.shards(for_saving=True), {}, TrainState(step=1).to_dict(), manifest)
        launch.leave_groups()


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT2, GPT_NEO, LLAMA], ids=["gpt2", "gpt-neo", "llama"])
def test_every_layout_becomes_the_same(model, tmp_path):
    """TP 1, 2, 4 and PP 1, 2, tied and untied embeddings, fused biases, grouped queries, gate and value."""
    tensor, pipeline = "parallel.tensor_parallel_size", "parallel.pipeline_parallel_size=2"
    run_distributed(save, 1, model, [[]], tmp_path)
    run_distributed(save, 2, model, [[f"{tensor}=2"], [pipeline]], tmp_path)
    run_distributed(
        save, 4, model, [[f"{tensor}=4", "parallel.sequence_parallel=true"], [f"{tensor}=2", pipeline]], tmp_path
    )
    folders = {}
    for run in ("1-0", "2-0", "2-1", "4-0", "4-1"):
        result = convert(tmp_path / run, tmp_path / f"{run}-hf", "huggingface", prove=run in ("1-0", "4-1"))
        assert result.dropped == ("optimizer",)
        folders[run] = (tmp_path / f"{run}-hf/model.safetensors").read_bytes()
    assert len(set(folders.values())) == 1


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "sentence-transformers"])  # has its own tests
def test_every_format_and_back(to, tmp_path):
    run_distributed(save, 1, LLAMA, [[]], tmp_path)
    before = native.open_source(tmp_path / "1-0", None)
    there = convert(tmp_path / "1-0", tmp_path / "there", to)
    back = convert(tmp_path / "there", tmp_path / "back", "megagpt", like=before.model)
    assert there.difference < 1e-4
    assert back.source.format == to
    after = native.open_source(tmp_path / "back", None)
    carried = [n for n in before.tensors if n.startswith("model/") or FORMATS[to].carries_optimizer]
    assert sorted(after.tensors) == sorted(carried)
    assert all(torch.equal(before.read(name), after.read(name)) for name in carried)
    if FORMATS[to].carries_optimizer:
        assert any(after.read(name).any() for name in carried if "exp_avg/" in name)


def run_command(*arguments: object) -> int:
    return cli.run(["checkpoint", "convert", *map(str, arguments)])


def test_the_command_line(tmp_path, caplog):
    caplog.set_level("INFO", "megagpt")
    run_distributed(save, 1, GPT2, [[]], tmp_path)
    assert run_command(tmp_path / "1-0", tmp_path / "hf", "--to", "huggingface") == 0
    assert "verified: the logits of both sides differ by at most" in caplog.text
    assert "has no place for: optimizer" in caplog.text
    assert "no tokenizer.json" in caplog.text
    assert run_command(tmp_path / "hf", tmp_path / "back", "--to", "megagpt", "--no-verify") == 0
    assert "not verified" in caplog.text
    for source, message in ((tmp_path / "none", "does not exist"), (tmp_path, "no checkpoint of a known format")):
        with pytest.raises(CheckpointError, match=message):
            run_command(source, tmp_path / "new", "--to", "megagpt")
    with pytest.raises(CheckpointError, match="hf exists"):
        run_command(tmp_path / "1-0", tmp_path / "hf", "--to", "huggingface")
    with pytest.raises(CheckpointError, match="differ by"):
        run_command(tmp_path / "1-0", tmp_path / "new", "--to", "huggingface", "--tolerance", -1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-0", "back", "hf"]


def test_killed_leaves_nothing_that_looks_whole(tmp_path):
    run_distributed(save, 1, [*GPT2, "model.hidden_size=1024", "model.num_attention_heads=8"], [[]], tmp_path)
    target = tmp_path / "hf"
    command = [
        sys.executable,
        "-m",
        "megagpt.cli",
        "checkpoint",
        "convert",
        tmp_path / "1-0",
        target,
        "--to",
        "huggingface",
    ]
    process = subprocess.Popen(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None and not list(tmp_path.glob(".hf.tmp-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it had begun, and was not done
    assert not target.exists()


def test_gpt_neo_computes_alike_without_its_missing_biases(tmp_path, caplog):
    run_distributed(save_with_biases, 1, GPT_NEO, tmp_path / "run")
    there = convert(tmp_path / "run", tmp_path / "there", "huggingface", tolerance=1e-4)
    assert "folded into the norm before" in caplog.text
    assert 0 < there.difference < 1e-4
    convert(tmp_path / "there", tmp_path / "back", "megagpt")
    convert(tmp_path / "back", tmp_path / "again", "huggingface")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("there", "again"))
    assert first == second


def save_with_biases(overrides: list[str], run: Path) -> None:
    """Save a model whose biases matter: without them the logits differ by far more than the tolerance."""
    from megagpt.checkpoint import Checkpointer
    from megagpt.config.load import load, to_dict
    from megagpt.parallel import launch
    from megagpt.parallel.build import build_engine
    from megagpt.train.objectives import LanguageModelObjective
    from megagpt.train.state import TrainState

    config = load([*overrides, "optim.precision=fp32", "data.corpora=[]"])
    launch.initialize(config.parallel, config.seed)
    engine = build_engine(config, LanguageModelObjective())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in engine.modules[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    manifest = {"run": "test", "config": to_dict(config), "layout": {}}
    with Checkpointer(run / "checkpoints", config.checkpoint) as checkpointer:
        checkpointer.save(1, engine.shards(for_saving=True), {}, TrainState(step=1).to_dict(), manifest)
