"""DeepSpeed's checkpoints of megagpt's model: ZeRO folders of stage 1, 2 and 3, with any number of ranks.

Data-parallel ranks hold flat ranges of fp32 masters and of Adam's moments; tensor-parallel ranks hold the shards of
Megatron-Core's layers. Writing makes one rank of stage 1. The files do not store the model's shape, which comes from a
megagpt.json in their folder or from --like.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

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
from megagpt.checkpoint.convert.pickles import load, sizes
from megagpt.checkpoint.convert.stored import StoredTensor
from megagpt.checkpoint.files import allocate, read_bytes, shown
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

NAME = "deepspeed"
LATEST = "latest"
MODEL_FILE = re.compile(r"(?:zero_pp_rank_([0-9]{1,6})_)?mp_rank_([0-9]{1,6})_model_states\.pt")
OPTIM_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_([0-9]{1,6})_mp_rank_([0-9]{1,6})_optim_states\.pt")
RANKS_LIMIT = 1 << 16
STATE = {"optimizer/exp_avg": "exp_avg", "optimizer/exp_avg_sq": "exp_avg_sq", "optimizer/master": "fp32"}
"""{megagpt's name of a kind of optimizer state: DeepSpeed's name}."""
VERSION = "0.19.8"
"""The version of DeepSpeed whose layout is written."""

Fragment = tuple[StoredTensor, int, int]
"""A range of a flat tensor: (tensor, first element, number of elements)."""


@dataclass
class _Rank:
    """Tensors of one tensor-parallel rank."""

    shapes: dict[str, tuple[int, ...]]
    weights: dict[str, StoredTensor]
    """Weights in the precision of training; they have no elements at stage 3."""
    state: dict[str, dict[str, list[Fragment]]] = field(default_factory=lambda: {key: {} for key in STATE.values()})
    """{kind: {name: the ranges of flat tensors that form it}}."""


def tag_folder(path: Path, latest: str) -> Path:
    """The folder that the file `latest` in `path` names, or `path` itself. Raises CheckpointError."""
    pointer = path / latest
    if not os.path.lexists(pointer):
        return path
    tag = read_bytes(pointer, limit=256).decode(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", tag):
        raise CheckpointError(f"{pointer} holds {tag!r}, which is not the name of a folder beside it")
    return inner_folder(path / tag)


def detect(path: Path) -> bool:
    """Whether there are files of ZeRO ranks in `path` or in the folder that its file `latest` names."""
    return path.is_dir() and bool(_files(tag_folder(path, LATEST), OPTIM_FILE))


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a checkpoint. Raises CheckpointError naming the file and the tensor."""
    folder = tag_folder(path, LATEST)
    model = find_model([folder, path], like)
    if model is None:
        raise CheckpointError(f"{folder} does not describe its model: give --like a megagpt config or checkpoint")
    models, optims = _files(folder, MODEL_FILE), _files(folder, OPTIM_FILE)
    ranks = max((tensor for _, tensor in optims), default=-1) + 1
    replicas = max((data for data, _ in optims), default=-1) + 1
    if replicas * ranks > RANKS_LIMIT:
        raise CheckpointError(f"{folder}: the ranks' files are numbered up to {replicas - 1} and {ranks - 1}")
    missing = [(d, t) for d in range(replicas) for t in range(ranks) if (d, t) not in optims or (0, t) not in models]
    if not optims or missing:
        raise CheckpointError(
            f"{folder}: files of data and tensor rank {missing[0] if missing else (0, 0)} are missing"
        )
    found, step = [], 0
    for tensor in range(ranks):
        try:
            state = load(models[0, tensor])
            step = state["global_steps"] if type(state["global_steps"]) is int else 0
            rank = _model_states(state)
            files = [optims[data, tensor] for data in range(replicas)]
            _collect(rank, [load(file)["optimizer_state_dict"] for file in files], files)
            found.append(rank)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__} {error!s:.300}"
            raise CheckpointError(
                f"{models[0, tensor]} or its optimizer files lack values that DeepSpeed saves: {what}"
            ) from None
    return _source(path, folder, model, step, found)


def _files(folder: Path, pattern: re.Pattern) -> dict[tuple[int, int], Path]:
    """{(data rank, tensor rank): file}."""
    matches = [(pattern.fullmatch(file.name), file) for file in folder.iterdir()] if folder.is_dir() else []
    return {(int(match[1] or 0), int(match[2])): file for match, file in matches if match}


def _model_states(state: Mapping[str, Any]) -> _Rank:
    if state.get("frozen_param_shapes"):
        raise CheckpointError("a checkpoint with frozen parameters is not read; megagpt trains all")
    shapes = {str(name): sizes(shape) for group in state["param_shapes"] for name, shape in group.items()}
    weights = {name: state["module"][name] for name in shapes}
    if strange := [name for name, weight in weights.items() if not isinstance(weight, StoredTensor)]:
        raise ValueError(f"{strange[0]} is no tensor")
    return _Rank(shapes, weights)


def _collect(rank: _Rank, states: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
    """Finds the ranges of a tensor-parallel rank's state in the files of its data-parallel ranks."""
    for data, (state, file) in enumerate(zip(states, files, strict=True)):
        taken: list[tuple[int, int, str]] = []  # bytes of the file
        counts = state["partition_count"]
        if max(counts if isinstance(counts, list) else [counts]) != len(files):
            raise CheckpointError(
                f"{file} is one of {shown(counts)} data-parallel ranks' files, but {len(files)} are here"
            )
        ranges = _stage3 if "fp32_flat_groups" in state else _stage12
        for kind, name, fragment in ranges(rank, state, data, len(files)):
            tensor, first, count = fragment
            if type(first) is not int or type(count) is not int or not tensor.is_contiguous:
                raise ValueError(f"{kind} of {name} is no range of a flat tensor")
            if not 0 <= first <= first + count <= prod(tensor.shape):
                raise CheckpointError(f"{file}: {kind} of {name} lies outside of the tensor that should hold it")
            rank.state[kind].setdefault(name, []).append(fragment)
            if count:
                size = tensor.dtype.itemsize
                begin = tensor.start + first * size
                taken.append((begin, begin + count * size, f"{kind} of {name}"))
        for before, after in pairwise(sorted(taken)):
            if before[1] > after[0]:
                raise CheckpointError(f"{file}: {before[2]} and {after[2]} overlap: both claim the same numbers")


def _stage12(rank: _Rank, state: Mapping[str, Any], *_: int) -> Iterator[tuple[str, str, Fragment]]:
    """Yields (kind, name, range) for stages 1 and 2, where DeepSpeed stores the range of each parameter."""
    for group, mapping in enumerate(state["param_slice_mappings"]):
        moments = state["base_optimizer_state"]["state"].get(group, {})
        flat = {"fp32": state["single_partition_of_fp32_groups"][group]}
        flat |= {kind: moments[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in moments}
        for kind, tensor in flat.items():
            for name, place in mapping.items():
                yield kind, name, (tensor, place.state["start"], place.state["numel"])


def _stage3(rank: _Rank, state: Mapping[str, Any], data: int, replicas: int) -> Iterator[tuple[str, str, Fragment]]:
    """Yields (kind, name, range) for stage 3, where each parameter is divided evenly over the ranks, with padding."""
    groups = state["fp32_flat_groups"]
    moments = state["optimizer_state_dict"]["state"]
    flat = {"fp32": groups}
    for kind in ("exp_avg", "exp_avg_sq"):
        if all(kind in moments.get(group, {}) for group in range(len(groups))):
            flat[kind] = [moments[group][kind] for group in range(len(groups))]
    for kind, tensors in flat.items():
        position = 0
        for name, shape in rank.shapes.items():
            part = -(-prod(shape) // replicas)
            held = max(0, min(part, prod(shape) - data * part))
            for fragment in _ranges(tensors, position, held):
                yield kind, name, fragment
            position += part


def _ranges(tensors: Sequence[StoredTensor], first: int, count: int) -> Iterator[Fragment]:
    """The ranges that hold elements first..first + count of the concatenation of flat tensors."""
    for tensor in tensors:
        size = prod(tensor.shape)
        held = min(count, size - first)
        if held > 0:
            yield tensor, first, held
            first, count = 0, count - held
        else:
            first -= size
        if not count:
            return


@dataclass(frozen=True)
class _Reader:
    """Reads one whole tensor."""

    name: str
    kind: str | None
    """Kind of optimizer state; None for the weights."""
    dtype: torch.dtype
    ranks: Sequence[_Rank]
    model: ModelConfig

    def __call__(self) -> torch.Tensor:
        return join(self.name, map(self._shard, self.ranks), len(self.ranks), self.model).to(self.dtype)

    def _shard(self, rank: _Rank) -> torch.Tensor:
        if self.kind is None and prod(rank.weights[self.name].shape):
            return rank.weights[self.name].read()
        fragments = rank.state[self.kind or "fp32"][self.name]
        tensor = fragments[0][0]
        flat = allocate((prod(rank.shapes[self.name]),), tensor.dtype, tensor.path)
        position = 0
        for tensor, first, count in fragments:
            tensor.read_flat(first, count, flat[position : position + count])
            position += count
        return flat.view(rank.shapes[self.name])


def _source(path: Path, folder: Path, model: ModelConfig, step: int, ranks: Sequence[_Rank]) -> LazySource:
    """The source with megagpt's names, after a check that shapes are right and nothing is missing."""
    problems, shapes = [], {}
    for name, shape in ranks[0].shapes.items():
        axis, _ = cut(name, model) if name in parameters(model) else (None, 1)
        shapes[name] = tuple(n * len(ranks) if number == axis else n for number, n in enumerate(shape))
        for kind in STATE.values():
            held = [sum(count for *_, count in rank.state[kind].get(name, ())) for rank in ranks]
            if any(rank.state[kind] for rank in ranks) and held != [prod(shape)] * len(ranks):
                problems.append(f"{kind} of {name} has {held} elements on its tensor-parallel ranks, not {prod(shape)}")
    if any(rank.shapes != ranks[0].shapes for rank in ranks):
        problems.append("tensor-parallel ranks list parameters of different shapes")
    raise_problems(folder, problems)
    check_parameters(folder, shapes, model)
    tensors, readers = {}, {}

    def add(name: str, kind: str | None, label: str, dtype: torch.dtype) -> None:
        tensors[f"{label}/{name}"] = TensorInfo(parameters(model)[name], dtype)
        readers[f"{label}/{name}"] = _Reader(name, kind, dtype, ranks, model)

    for name in parameters(model):
        dtype = ranks[0].weights[name].dtype
        add(name, None, "model", dtype)
        for label, kind in STATE.items():
            # fp32 weights have no separate masters.
            if ranks[0].state[kind] and (kind != "fp32" or dtype != torch.float32):
                add(name, kind, label, torch.float32)
    return LazySource(path, NAME, model, step, tensors, readers)


def masters(source: Source) -> dict[str, str]:
    """{parameter: name of its fp32 master in the source, or of its weight when it has no master}."""
    names = parameters(source.model)
    held = {name: f"optimizer/master/{name}" for name in names}
    return {name: label if label in source.tensors else f"model/{name}" for name, label in held.items()}


def moments(source: Source) -> tuple[str, ...]:
    """Adam's moments if the source has them for all parameters, else ()."""
    kinds = ("exp_avg", "exp_avg_sq")
    complete = all(f"optimizer/{kind}/{name}" in source.tensors for kind in kinds for name in parameters(source.model))
    return kinds if complete else ()


def groups(model: ModelConfig) -> list[dict[str, tuple[int, ...]]]:
    """The optimizer's two groups of parameters: matrices, which have weight decay, and vectors, which have none."""
    shapes = parameters(model)
    return [{name: shape for name, shape in shapes.items() if (len(shape) > 1) == matrix} for matrix in (True, False)]


def model_states(source: Source, bar: tqdm) -> dict[str, Any]:
    """The content of DeepSpeed's mp_rank_00_model_states.pt."""
    model = source.model
    return {
        "module": {name: lazy(source, [f"model/{name}"], bar) for name in parameters(model)},
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{name: torch.Size(shape) for name, shape in group.items()} for group in groups(model)],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": source.step,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": {},
        "ds_version": VERSION,
        "universal_checkpoint_info": {},
    }


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes a checkpoint of one rank at ZeRO stage 1 into an empty folder."""
    tag = folder / f"global_step{source.step}"
    tag.mkdir()
    zips.save(tag / "mp_rank_00_model_states.pt", model_states(source, bar))
    held, kinds, step = masters(source), moments(source), torch.tensor(float(source.step))
    flat, state, slices = [], {}, []
    for number, group in enumerate(groups(source.model)):
        size, position, mapping = sum(map(prod, group.values())), 0, {}
        for name, shape in group.items():
            # Stands in for a DeepSpeed class with these two attributes, so that DeepSpeed need not be imported.
            mapping[name] = argparse.Namespace(start=position, numel=prod(shape))
            position += prod(shape)
        slices.append(mapping)
        flat.append(lazy(source, [held[name] for name in group], bar, (size,), torch.float32))
        state[number] = {"step": zips.Lazy((), torch.float32, lambda: [step])} if kinds else {}
        for kind in kinds:
            names = [f"optimizer/{kind}/{name}" for name in group]
            state[number][kind] = lazy(source, names, bar, (size,), torch.float32)
    optimizer = {
        "dynamic_loss_scale": False,
        "overflow": False,
        "base_optimizer_state": {"state": state, "param_groups": [{"params": [n]} for n in range(len(flat))]},
        "single_partition_of_fp32_groups": flat,
        "zero_stage": 1,
        "group_paddings": [0] * len(flat),
        "partition_count": [1] * len(flat),
        "ds_version": VERSION,
        "param_slice_mappings": slices,
    }
    values = {"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": VERSION}
    zips.save(tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt", values)
    (tag / COMPANION).write_text(companion(source.model, source.step))
    (folder / LATEST).write_text(tag.name)


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=True)
