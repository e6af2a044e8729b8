"""DeepSpeed's checkpoints: what its ranks save is read, what we write its own tools and engine take."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from dist import run_distributed
from tqdm import tqdm

from megagpt.checkpoint.convert import deepspeed, deepspeed_universal
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters
from megagpt.errors import CheckpointError
from tests.checkpoint.convert.deepspeed_ranks import GPT3, MODEL, load_universal, write_all

CASES = {
    "stage 1": (GPT3, 1, 1, "fp32"),
    "stage 2": (MODEL, 2, 1, "bf16"),
    "stage 3": (GPT3, 3, 1, "fp32"),
    "stage 1 of TP2": (MODEL, 1, 2, "bf16"),
    "stage 2 of TP4": (GPT3, 2, 4, "fp32"),
    "stage 3 of TP2": (MODEL, 3, 2, "bf16"),
}
"""Model, stage, tensor-parallel ranks and precision, on four ranks."""


def source_of(model, dtype: torch.dtype, optimizer: bool = True) -> LazySource:
    """A source in memory, with random optimizer state."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for name, shape in parameters(model).items():
        tensors[f"optimizer/master/{name}"] = torch.randn(shape, generator=draw)
        tensors[f"model/{name}"] = tensors[f"optimizer/master/{name}"].to(dtype)
        for kind in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer/{kind}/{name}"] = torch.rand(shape, generator=draw)
    if not optimizer:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("model/")}
    elif dtype == torch.float32:
        tensors = {name: tensor for name, tensor in tensors.items() if "/master/" not in name}
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    readers = {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}
    return LazySource(Path("memory"), "megagpt", model, 2, infos, readers)


def assert_same(one, other) -> None:
    assert set(one.tensors) == set(other.tensors) and one.step == other.step
    for name, info in one.tensors.items():
        tensor = one.read(name)
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype)
        assert torch.equal(tensor, other.read(name)), name


def written(form, source, folder: Path) -> Path:
    folder.mkdir()
    with tqdm(disable=True) as bar:
        form.write(source, folder, bar)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict]:
    """Checkpoints that DeepSpeed wrote on four ranks, and what its engines held."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("deepspeed")
    return folder, run_distributed(write_all, 4, str(folder), CASES)[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_deepspeed_saves_is_read(saved, case):
    folder, held = saved[0] / case, saved[1][case]
    model, _, tensor, precision = CASES[case]
    assert deepspeed.detect(folder) and not deepspeed_universal.detect(folder)
    source = deepspeed.open_source(folder, model)
    assert (source.format, source.step) == ("deepspeed", 2)
    for name, expected in held.items():
        kind, parameter = name.rsplit("/", 1)
        if kind == "optimizer/master":
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            assert torch.equal(source.read(f"model/{parameter}"), expected.to(dtype)), parameter
        if kind != "optimizer/master" or precision == "bf16":  # else the weights are the masters
            assert torch.equal(source.read(name), expected), name
    kinds = ("master", "exp_avg", "exp_avg_sq") if precision == "bf16" else ("exp_avg", "exp_avg_sq")
    names = parameters(model)
    assert set(source.tensors) == {f"model/{name}" for name in names} | {
        f"optimizer/{kind}/{name}" for kind in kinds for name in names
    }
    assert set(held) == {f"optimizer/{kind}/{name}" for kind in ("master", "exp_avg", "exp_avg_sq") for name in names}
    if tensor == 1:  # DeepSpeed's own tool does not join tensor-parallel ranks
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        theirs = get_fp32_state_dict_from_zero_checkpoint(str(folder))
        assert set(theirs) == set(parameters(model))
        for name, weight in theirs.items():
            assert torch.equal(weight, held[f"optimizer/master/{name}"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["stage 1", "stage 2", "stage 3"])
def test_universal_checkpoints_of_deepspeed_are_read(saved, case, tmp_path):
    folder, (model, *_) = saved[0] / case, CASES[case]
    copy = Path(shutil.copytree(folder / "global_step2", tmp_path / "copy"))
    for file in copy.glob("mp_rank_*"):  # DeepSpeed's conversion stumbles over the empty state of Megatron's layers
        state = torch.load(file, weights_only=False)
        state["module"] = {name: value for name, value in state["module"].items() if value is not None}
        torch.save(state, file)
    convert(copy, tmp_path / "universal")
    assert deepspeed_universal.detect(tmp_path)
    assert_same(deepspeed_universal.open_source(tmp_path, model), deepspeed.open_source(folder, model))


def convert(source: Path, target: Path) -> None:
    """DeepSpeed's own conversion to a universal checkpoint."""
    from deepspeed.checkpoint import ds_to_universal

    arguments = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": False}
    folders = {"input_folder": str(source), "output_folder": str(target)}
    ds_to_universal.main(argparse.Namespace(**arguments, **folders, inject_missing_state=True))


@pytest.mark.parametrize("form", [deepspeed, deepspeed_universal], ids=lambda form: form.NAME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", [GPT3, MODEL], ids=["gpt3", "modern"])
def test_what_is_written_is_read(tmp_path, form, dtype, model):
    source = source_of(model, dtype)
    folder = written(form, source, tmp_path / "written")
    assert form.detect(folder)
    read = form.open_source(folder, None)
    assert read.model == model
    assert_same(read, source)


@pytest.mark.parametrize("form", [deepspeed, deepspeed_universal], ids=lambda form: form.NAME)
def test_weights_go_without_moments(tmp_path, form):
    source = source_of(GPT3, torch.float32, optimizer=False)
    assert_same(form.open_source(written(form, source, tmp_path / "written"), None), source)


def test_deepspeed_tools_take_what_is_written(tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    source = source_of(MODEL, torch.bfloat16)
    folder = written(deepspeed, source, tmp_path / "zero")
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    assert set(theirs) == set(parameters(MODEL))
    assert all(torch.equal(theirs[name], source.read(f"optimizer/master/{name}")) for name in theirs)
    convert(folder / "global_step2", tmp_path / "universal")
    assert_same(deepspeed_universal.open_source(tmp_path / "universal", MODEL), source)


@pytest.mark.slow
def test_deepspeed_engine_loads_a_written_universal_checkpoint(tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    source = source_of(MODEL, torch.bfloat16)
    folder = written(deepspeed_universal, source, tmp_path / "universal")
    for tensor_parallel, stage in ((1, 1), (2, 2)):
        held = run_distributed(load_universal, 2, str(folder), MODEL, tensor_parallel, stage)[0]
        assert set(held) == {name for name in source.tensors if name.startswith("optimizer/")}
        for name, tensor in held.items():
            assert torch.equal(tensor, source.read(name)), name


@pytest.fixture
def zero(tmp_path) -> Path:
    return written(deepspeed, source_of(GPT3, torch.float32), tmp_path / "zero")


def change(folder: Path, name: str, edit) -> None:
    state = torch.load(folder / "global_step2" / name, weights_only=False)
    edit(state)
    torch.save(state, folder / "global_step2" / name)


OPTIM, WEIGHTS = "zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"
NORM = "decoder.final_layernorm.weight"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (OPTIM, lambda s: s["optimizer_state_dict"]["param_slice_mappings"][1].pop(NORM), f"fp32 of {NORM} has"),
        (OPTIM, lambda s: s["optimizer_state_dict"].update(partition_count=[2, 2]), "data-parallel ranks' files"),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"]["param_slice_mappings"][1][NORM].__dict__.update(start=99999),
            NORM,
        ),
        (
            OPTIM,
            lambda s: s["optimizer_state_dict"].pop("single_partition_of_fp32_groups"),
            "lack values that DeepSpeed saves",
        ),
        (OPTIM, lambda s: s.pop("optimizer_state_dict"), "lack values that DeepSpeed saves"),
        (WEIGHTS, lambda s: s["param_shapes"][1].pop(NORM), f"{NORM} is missing"),
        (WEIGHTS, lambda s: s["param_shapes"][1].update({NORM: torch.Size([31])}), f"fp32 of {NORM} has"),
        (WEIGHTS, lambda s: s["module"].pop(NORM), "final_layernorm"),
        (WEIGHTS, lambda s: s.update(frozen_param_shapes={"a": torch.Size([1])}), "frozen parameters"),
    ],
)
def test_bad_files_are_refused(zero, name, edit, message):
    change(zero, name, edit)
    with pytest.raises(CheckpointError, match=message):
        deepspeed.open_source(zero, None)


def test_what_is_missing_is_named(zero, tmp_path):
    (zero / "global_step2/megagpt.json").unlink()
    with pytest.raises(CheckpointError, match="--like"):
        deepspeed.open_source(zero, None)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.2\.input_layernorm\.weight is missing"):
        deepspeed.open_source(zero, dataclasses.replace(GPT3, num_layers=3))
    (zero / "global_step2/megagpt.json").write_text(json.dumps({"model": {"num_layers": "many"}}))
    with pytest.raises(CheckpointError, match="does not describe a model"):
        deepspeed.open_source(zero, None)
    (zero / "global_step2/megagpt.json").unlink()
    shutil.copy(zero / "global_step2" / OPTIM, zero / "global_step2" / OPTIM.replace("rank_0_", "rank_2_"))
    with pytest.raises(CheckpointError, match=r"tensor rank \(1, 0\) are missing"):
        deepspeed.open_source(zero, GPT3)
    (zero / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError, match="not the name of a folder"):
        deepspeed.open_source(zero, GPT3)


def test_bad_universal_checkpoints_are_refused(tmp_path):
    folder = written(deepspeed_universal, source_of(GPT3, torch.float32), tmp_path / "universal")
    place = folder / "global_step2_universal/zero" / NORM
    (place / "exp_avg.pt").unlink()
    with pytest.raises(CheckpointError, match=f"exp_avg of {NORM}"):
        deepspeed_universal.open_source(folder, None)
    torch.save({"other": torch.ones(32)}, place / "exp_avg.pt")
    with pytest.raises(CheckpointError, match="no tensor under `param`"):
        deepspeed_universal.open_source(folder, None)
    shutil.rmtree(place)
    with pytest.raises(CheckpointError, match=f"{NORM} is missing"):
        deepspeed_universal.open_source(folder, None)
