"""DeepSpeed's universal checkpoints: one folder per parameter, with its whole fp32 master and Adam's moments.

The weights in the precision of training are in mp_rank_00_model_states.pt.
"""

import os
import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from tqdm import tqdm

from megagpt.checkpoint.convert import zips
from megagpt.checkpoint.convert.base import Format, Source, TensorInfo
from megagpt.checkpoint.convert.common import (
    COMPANION,
    LazySource,
    check_parameters,
    companion,
    cut,
    find_model,
    inner_folder,
    join,
    lazy,
    parameters,
    raise_problems,
)
from megagpt.checkpoint.convert.deepspeed import STATE, VERSION, groups, masters, model_states, moments, tag_folder
from megagpt.checkpoint.convert.pickles import load
from megagpt.checkpoint.convert.stored import StoredTensor
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

NAME = "deepspeed-universal"
LATEST = "latest_universal"
FOLDER = "zero"
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
MODEL_FILE = re.compile(r"(?:zero_pp_rank_0_)?mp_rank_00_model_states\.pt")


def detect(path: Path) -> bool:
    """Whether there is a folder `zero` with parameters in `path` or in the folder that its latest_universal names."""
    return path.is_dir() and bool(_names(tag_folder(path, LATEST) / FOLDER))


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a checkpoint. Raises CheckpointError naming the file and the tensor."""
    folder = tag_folder(path, LATEST)
    model = find_model([folder, path], like)
    if model is None:
        raise CheckpointError(f"{folder} does not describe its model: give --like a megagpt config or checkpoint")
    names = [inner_folder(folder / FOLDER / name).name for name in _names(inner_folder(folder / FOLDER))]
    held = {kind: _kind(folder, names, kind, model) for kind in STATE.values()}
    shapes = {name: tensor.shape for name, tensor in held["fp32"].items()}
    check_parameters(folder, shapes, model)
    problems = [
        f"{kind} of {name} has another shape than its fp32 master, or is missing"
        for kind, tensors in held.items()
        for name in (names if tensors else ())
        if name not in tensors or tensors[name].shape != shapes[name]
    ]
    raise_problems(folder, problems)
    weights, step = _weights(folder)
    dtype = next((tensor.dtype for tensor in weights.values()), torch.float32)
    tensors, readers = {}, {}
    for name, shape in parameters(model).items():
        whole = weights.get(name)  # only a part with tensor parallelism or stage 3; then the master is used
        own = whole if whole is not None and whole.shape == shapes[name] else held["fp32"][name]
        stored = {"model": (own, dtype)}
        stored |= {label: (held[kind][name], torch.float32) for label, kind in STATE.items() if held[kind]}
        if dtype == torch.float32:
            del stored["optimizer/master"]  # fp32 weights have no separate masters
        for label, (tensor, wanted) in stored.items():
            tensors[f"{label}/{name}"] = TensorInfo(shape, wanted)
            readers[f"{label}/{name}"] = _Reader(name, tensor, wanted, model)
    return LazySource(path, NAME, model, step, tensors, readers)


def _names(folder: Path) -> list[str]:
    """Names of the parameters that have a folder with an fp32 master."""
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if FOLDER_NAME.fullmatch(name) and os.path.lexists(folder / name / "fp32.pt")]


@dataclass(frozen=True)
class _Reader:
    """Reads one tensor."""

    name: str
    stored: StoredTensor
    dtype: torch.dtype
    model: ModelConfig

    def __call__(self) -> torch.Tensor:
        return join(self.name, [self.stored.read()], 1, self.model).to(self.dtype)


def _kind(folder: Path, names: list[str], kind: str, model: ModelConfig) -> dict[str, StoredTensor]:
    """{name: tensor} of one kind of state, for all parameters that have it."""
    found, shapes = {}, parameters(model)
    for name in names:
        file = folder / FOLDER / name / f"{kind}.pt"
        if os.path.lexists(file):
            value = load(file)
            tensor = value.get("param") if isinstance(value, dict) else value
            if not isinstance(tensor, StoredTensor):
                raise CheckpointError(f"{file} holds no tensor under `param`, as DeepSpeed's universal checkpoints do")
            if value is tensor and name in shapes and tensor.shape == (prod(shapes[name]),):  # flat, from stage 3
                stride = torch.empty(shapes[name], device="meta").stride()
                tensor = replace(tensor, shape=shapes[name], stride=stride)
            found[name] = tensor
    return found


def _weights(folder: Path) -> tuple[dict[str, StoredTensor], int]:
    """The first rank's weights in the precision of training, and the step; ({}, 0) if there is only `zero`."""
    for file in sorted(folder.iterdir()):
        if MODEL_FILE.fullmatch(file.name):
            state = load(file)
            if not isinstance(state, dict) or not isinstance(state.get("module"), dict):
                raise CheckpointError(f"{file} holds no `module`, as DeepSpeed's checkpoints do")
            step = state.get("global_steps")
            weights = {name: value for name, value in state["module"].items() if isinstance(value, StoredTensor)}
            return weights, step if type(step) is int else 0
    return {}, 0


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes a universal checkpoint into an empty folder."""
    tag = folder / f"global_step{source.step}_universal"
    (tag / FOLDER).mkdir(parents=True)
    for name, label in masters(source).items():
        axis, parts = cut(name, source.model)
        about = {} if axis is None else {"cat_dim": axis} | ({"param_n_sub_params": parts} if parts > 1 else {})
        (tag / FOLDER / name).mkdir()
        for kind, tensor in {"fp32": label, **{kind: f"optimizer/{kind}/{name}" for kind in moments(source)}}.items():
            value = about | {"param": lazy(source, [tensor], bar, dtype=torch.float32)}
            zips.save(tag / FOLDER / name / f"{kind}.pt", value)
        if moments(source):
            zips.save(tag / FOLDER / name / "step.pt", float(source.step))
    state = {
        "dynamic_loss_scale": False,
        "overflow": False,
        "zero_stage": 1,
        "partition_count": [1] * len(groups(source.model)),
        "ds_version": VERSION,
        "param_groups": [{"params": [number]} for number in range(len(groups(source.model)))],
    }
    zips.save(tag / FOLDER / "optimizer_state.pt", state)
    states = model_states(source, bar)
    states["universal_checkpoint_info"] = {"universal_checkpoint_version": 0.2}
    zips.save(tag / "mp_rank_00_model_states.pt", states)
    (tag / COMPANION).write_text(companion(source.model, source.step))
    (folder / LATEST).write_text(tag.name)


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=True)
