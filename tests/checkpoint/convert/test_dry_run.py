"""A dry run says what the conversion then does, without weights being read or written; or with none at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megagpt import cli
from megagpt.checkpoint.convert import safetensors_files
from megagpt.checkpoint.convert.convert import convert
from megagpt.checkpoint.convert.dry_run import RATE, START_SECONDS, DryRun, dry_run, pattern
from megagpt.checkpoint.convert.safetensors_files import Stored
from megagpt.errors import CheckpointError
from tests.checkpoint.convert.published import PUBLISHED
from tests.checkpoint.convert.tiny_families import transformers_model

GEMMA = PUBLISHED["gemma2"]["Gemma-2-9B"]


def refuse(*_, **__):
    """In place of what reads a tensor's data, or hashes a checkpoint's files."""
    raise AssertionError("weights were read")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny Gemma 2, whose output projection is stored beside the embedding to which it is tied."""
    path = tmp_path / "gemma"
    model = transformers_model("gemma2").bfloat16()
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def sizes(folder: Path) -> dict[str, int]:
    """Of the files of weights."""
    return {path.name: path.stat().st_size for path in folder.rglob("*.safetensors")}


def status(command: list[str]) -> int:
    """Exit status of `megagpt` with these arguments."""
    return cli.run(command)


def dry(*arguments, **options) -> DryRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stored, "read_flat", refuse)
        patch.setattr("megagpt.checkpoint.convert.native.verify", refuse)
        patch.setattr("megagpt.checkpoint.convert.native.fill", refuse)
        plan = dry_run(*arguments, **options)
    assert not plan.refused
    return plan


def test_gemma_there_and_back(folder, tmp_path):
    run, back = tmp_path / "run", tmp_path / "back"
    plan = dry(folder, run, "megagpt")
    assert (plan.format, plan.family) == ("huggingface", "Gemma2ForCausalLM")
    assert plan.read == sizes(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert plan.tensors == len(shapes)
    assert plan.bytes == 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    assert plan.dtypes == {"bfloat16": 2 + 2 * 8}
    found = {(row.theirs, row.their_shape) for row in plan.renamed}
    assert found == {(pattern(name), shape) for name, shape in shapes.items() if name != "lm_head.weight"}
    assert sum(row.count for row in plan.renamed) == len(shapes) - 1
    (down,) = (row for row in plan.renamed if row.theirs == "model.layers.N.mlp.down_proj.weight")
    assert (down.ours, down.count) == ("decoder.layers.N.mlp.linear_fc2.weight", 2)
    assert not run.exists()
    convert(folder, run, "megagpt", prove=False)
    assert plan.written == sizes(run)
    returning = dry(run, back, "huggingface")
    assert (returning.format, returning.family, returning.renamed) == ("megagpt", "Gemma2ForCausalLM", plan.renamed)
    assert returning.read == sizes(run)
    convert(run, back, "huggingface", prove=False)
    assert returning.written == sizes(back)
    assert returning.memory < returning.proof_memory + 2**30


def test_shards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_files, "SHARD_BYTES", 20_000)
    plan = dry(folder, tmp_path / "again", "huggingface")
    convert(folder, tmp_path / "again", "huggingface", prove=False)
    assert len(plan.written) > 2
    assert plan.written == sizes(tmp_path / "again")


@pytest.mark.parametrize("name", ["gpt2", "gptj", "falcon", "opt", "phi3"])
def test_config_alone_promises_what_the_weights_hold(name, tmp_path):
    full, bare = tmp_path / "full", tmp_path / "bare"
    transformers_model(name).save_pretrained(full)
    bare.mkdir()
    (bare / "config.json").write_text((full / "config.json").read_text())
    promised, held = (dry(path, tmp_path / "target", "megagpt") for path in (bare, full))
    assert promised.read == {}
    assert "has no weights" in promised.notes[0]
    for field in ("family", "renamed", "written", "written_bytes", "dtypes", "memory", "cpu_seconds", "parameters"):
        assert getattr(promised, field) == getattr(held, field), field


def test_nine_billion_parameters_from_config_alone(tmp_path, capsys):
    """Gemma 2 9B in bf16: 18.5 GB, of which the embedding of 1.8 GB is the largest tensor."""
    source = tmp_path / "gemma"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(GEMMA | {"torch_dtype": "bfloat16"}))
    plan = dry(source, tmp_path / "run", "megatron")
    assert plan.parameters == 9_241_705_984
    assert plan.bytes == plan.written_bytes == 2 * plan.parameters
    assert plan.memory - 2 * 2 * 256000 * 3584 == plan.proof_memory - 4 * plan.parameters == 300 << 20
    assert plan.cpu_seconds == START_SECONDS + plan.bytes / RATE
    assert [row.count for row in plan.renamed if row.theirs.endswith("q_proj.weight")] == [42]
    command = ["checkpoint", "convert", str(source), str(tmp_path / "run"), "--to", "megagpt", "--dry-run"]
    assert status(command) == 0
    shown = capsys.readouterr().out
    assert "9,241,705,984 parameters, 42 layers, Gemma2ForCausalLM" in shown
    assert "42 x model.layers.N.self_attn.o_proj.weight [3584 x 4096]" in shown
    assert "18.48 GB" in shown
    assert not (tmp_path / "run").exists()


def refusals(values: dict, folder: Path, to: str = "megagpt") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return "; ".join(dry_run(folder, folder / "run", to).refused)


def test_what_is_refused_is_said(folder, tmp_path, capsys):
    assert "mixture of experts" in refusals({"model_type": "mixtral"}, tmp_path / "experts")
    assert "scale_attn" in refusals(
        {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, tmp_path / "scaled"
    )
    assert not refusals(GEMMA | {"dtype": ["bfloat16"]}, tmp_path / "dtype")
    assert "language model, which gives no vectors" in refusals(GEMMA, tmp_path / "vectors", "sentence-transformers")
    (tmp_path / "there").mkdir()
    plan = dry_run(folder, tmp_path / "there", "megagpt")
    assert plan.refused == [f"{tmp_path / 'there'} exists: give a new name, or remove it"]
    assert plan.written
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (missing,) = dry_run(folder, tmp_path / "new", "megagpt").refused
    assert "model.norm.weight is missing" in missing
    assert status(["checkpoint", "convert", str(folder), str(tmp_path / "new"), "--to", "megagpt", "--dry-run"]) == 1
    assert "refused     " in capsys.readouterr().out


def test_a_full_disk_is_foreseen(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    (reason,) = dry_run(folder, tmp_path / "run", "megagpt").refused
    assert reason.endswith("bytes would be written, and 1,000 are free")


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint of a known format"):
        dry_run(tmp_path, tmp_path / "run", "megagpt")
