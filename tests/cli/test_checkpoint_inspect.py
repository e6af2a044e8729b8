"""The command line that shows what a checkpoint is, of megagpt and of others."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from megagpt.checkpoint import Checkpointer, Shard
from megagpt.checkpoint.convert import deepspeed, deepspeed_universal, megatron, megatron_dist
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.common import COMPANION, LazySource, parameters
from megagpt.config.load import save, to_dict
from megagpt.config.schema import CheckpointConfig, Config, ModelConfig
from megagpt.errors import CheckpointError

MODEL = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, sequence_length=16, vocab_size=100)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"model/{name}": torch.randn(shape, generator=draw) for name, shape in parameters(MODEL).items()}


@pytest.fixture
def run_dir(tmp_path, tensors) -> Path:
    """A run with two checkpoints; the tensors of the last are cut in two."""
    with Checkpointer(tmp_path / "run/checkpoints", CheckpointConfig()) as checkpointer:
        for step in (3, 12):
            shards = []
            for name, tensor in tensors.items():
                flat, zero = tensor.flatten(), (0,) * tensor.dim()
                for span in ((0, 5), (5, tensor.numel())):
                    shards.append(Shard(name, tuple(tensor.shape), zero, tuple(tensor.shape), span, flat[slice(*span)]))
            manifest = {"run": "demo", "config": to_dict(Config(model=MODEL)), "layout": {"tensor": 2}}
            checkpointer.save(step, shards, {"rng": torch.zeros(4)}, {"step": step}, manifest)
    return tmp_path / "run"


@pytest.fixture
def tool(megagpt):
    return partial(megagpt, "checkpoint", "inspect")


def assert_describes(facts: dict, tensors: dict[str, torch.Tensor]) -> None:
    assert set(facts["tensors"]) >= set(tensors)
    for name, tensor in tensors.items():
        described = facts["tensors"][name]
        assert (described["dtype"], described["shape"]) == ("float32", list(tensor.shape))
        assert described["norm"] == pytest.approx(tensor.double().norm().item(), rel=1e-12)
    count = sum(tensor.numel() for tensor in tensors.values())
    assert facts["groups"]["model"] == {"tensors": len(tensors), "elements": count, "bytes": 4 * count}


def test_a_run_and_a_step(tool, run_dir, tensors):
    facts = json.loads(tool(run_dir, "--json", "--verify"))
    assert (facts["format"], facts["step"], facts["run"], facts["verified"]) == ("megagpt", 12, "demo", True)
    assert facts["layout"] == {"tensor": 2} and facts["model"]["hidden_size"] == 32
    assert_describes(facts, tensors)
    older = json.loads(tool(run_dir / "checkpoints/step_00000003", "--json", "--no-norms"))
    assert older["step"] == 3 and "verified" not in older
    assert all("norm" not in described for described in older["tensors"].values())


def test_text_is_a_table(tool, run_dir, tensors):
    lines = tool(run_dir).splitlines()
    for name, tensor in tensors.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split()[-1] == f"{tensor.double().norm().item():.6g}"
        assert " x ".join(str(size) for size in tensor.shape) in line
    assert any(line.split() == ["step", "12"] for line in lines)


def test_damage_is_found_by_verify(tool, run_dir):
    file = run_dir / "checkpoints/step_00000012/rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    tool(run_dir, "--no-norms")
    with pytest.raises(CheckpointError, match="SHA-256"):
        tool(run_dir, "--verify")


@pytest.mark.parametrize(
    "form", [megatron, megatron_dist, deepspeed, deepspeed_universal], ids=lambda form: form.FORMAT.name
)
def test_other_formats(tool, tmp_path, tensors, form):
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    readers = {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}
    folder = tmp_path / "written"
    folder.mkdir()
    with tqdm(disable=True) as bar:
        form.write(LazySource(tmp_path, "megagpt", MODEL, 7, infos, readers), folder, bar)
    facts = json.loads(tool(folder, "--json"))
    assert (facts["format"], facts["step"], facts["model"]["vocab_size"]) == (form.FORMAT.name, 7, 100)
    assert_describes(facts, tensors)
    with pytest.raises(CheckpointError, match="no hashes"):
        tool(folder, "--verify")
    next(folder.rglob(COMPANION)).unlink()
    save(Config(model=MODEL), tmp_path / "config.yaml")
    assert json.loads(tool(folder, "--json", "--like", tmp_path / "config.yaml"))["tensors"] == facts["tensors"]


def test_what_is_no_checkpoint_is_refused(tool, tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint of a known format"):
        tool(tmp_path)
    with pytest.raises(CheckpointError, match="absent does not exist"):
        tool(tmp_path / "absent")
