"""Megatron-LM's older checkpoints: one folder per rank, `mp_rank_TT` or `mp_rank_TT_PPP`, with a model_optim_rng.pt.

It reads any tensor and pipeline parallel layout, including interleaved pipelines, and also models from before
Megatron-Core. It writes one rank. Only weights are converted, not the optimizer's state.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from megagpt.checkpoint.convert import zips
from megagpt.checkpoint.convert.base import Format, Source, TensorInfo
from megagpt.checkpoint.convert.common import (
    COMPANION,
    VOCABULARY,
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
from megagpt.checkpoint.convert.megatron_args import (
    TRACKER,
    arguments,
    canonical,
    iteration_folder,
    model_of,
    namespace,
)
from megagpt.checkpoint.convert.pickles import Record, load
from megagpt.checkpoint.convert.stored import StoredTensor
from megagpt.checkpoint.files import shown
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

NAME = "megatron"
FILE = "model_optim_rng.pt"
RANK = re.compile(r"mp_rank_([0-9]{2,4})(?:_([0-9]{3,4}))?(_[0-9]{3,4})?")
LAYER = re.compile(r"decoder\.layers\.([0-9]{1,6})\.(.*)")
EMBEDDING, OUTPUT = VOCABULARY[:2]
NAME_LIMIT = 300
"""Limit of characters in a parameter's name."""


@dataclass
class _Parts:
    """A parameter's shards by tensor-parallel rank, and the shards of the last stage's copy if it is tied."""

    shards: list[StoredTensor] = field(default_factory=list)
    copies: list[StoredTensor] = field(default_factory=list)


def detect(path: Path) -> bool:
    """Whether there are folders of ranks in `path` or in the iteration that its tracker file names."""
    return path.is_dir() and any(iteration_folder(path).glob("mp_rank_*"))


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a checkpoint. Raises CheckpointError naming the file and the tensor."""
    folder = iteration_folder(path)
    states = {}
    for place, file in _files(folder).items():
        states[place] = load(file)
        if not isinstance(states[place], dict):
            raise CheckpointError(f"{file} does not have the contents that Megatron-LM saves")
    first = states[0, 0]
    model = find_model([folder, path], like) or model_of(arguments(first, folder), folder)
    old = isinstance(first.get("model"), dict) and "language_model" in first["model"]
    version = first.get("checkpoint_version", 0 if old else 3)
    if type(version) not in (int, float):
        raise CheckpointError(f"{folder}: checkpoint_version is {shown(version)}, not a number")
    parts = _collect(folder, states, model)
    _check(folder, parts, model, max(tensor for tensor, _ in states) + 1)
    tensors, readers = {}, {}
    shapes = parameters(model)
    for name in shapes:
        tensors[f"model/{name}"] = TensorInfo(shapes[name], parts[name].shards[0].dtype)
        readers[f"model/{name}"] = _Reader(name, parts[name], model, float(version))
    step = first.get("iteration", 0)
    return LazySource(path, NAME, model, step if type(step) is int else 0, tensors, readers)


@dataclass(frozen=True)
class _Reader:
    """Reads one whole parameter."""

    name: str
    parts: _Parts
    model: ModelConfig
    version: float

    def __call__(self) -> torch.Tensor:
        return join(self.name, self._shards(), len(self.parts.shards), self.model)

    def _shards(self) -> Iterator[torch.Tensor]:
        for number, stored in enumerate(self.parts.shards):
            shard = self._ordered(stored.read())
            if self.parts.copies and not torch.equal(shard, self.parts.copies[number].read()):
                raise CheckpointError(f"{self.name} is tied, but the first and the last pipeline stage differ in it")
            yield shard

    def _ordered(self, shard: torch.Tensor) -> torch.Tensor:
        """The shard with rows of query, key and value in the order of version 2: grouped by head."""
        if ".linear_qkv." not in self.name or self.version >= 2:
            return shard
        size, rest = self.model.head_size, shard.shape[1:]
        if self.version < 1:
            return shard.view(3, -1, size, *rest).transpose(0, 1).reshape(shard.shape)
        return shard.view(-1, size, 3, *rest).transpose(1, 2).reshape(shard.shape)


def _files(folder: Path) -> dict[tuple[int, int], Path]:
    """{(tensor rank, pipeline rank): file}. Raises CheckpointError unless every rank of the grid has a file."""
    files = {}
    for file in (inner_folder(rank) / FILE for rank in folder.glob("mp_rank_*")):
        match = RANK.fullmatch(file.parent.name)
        if match is None or match[3]:
            raise CheckpointError(f"{file}: expert parallel ranks are not read; megagpt has no experts")
        files[int(match[1]), int(match[2] or 0)] = file
    if not files:
        raise CheckpointError(f"{folder} holds no mp_rank_*/{FILE}")
    tensor, pipeline = (max(rank) + 1 for rank in zip(*files, strict=True))
    if tensor * pipeline > 1 << 16:
        raise CheckpointError(f"{folder}: the ranks' folders are numbered up to {tensor - 1} and {pipeline - 1}")
    missing = [(t, p) for t in range(tensor) for p in range(pipeline) if (t, p) not in files]
    if missing:
        raise CheckpointError(f"{folder}: tensor rank {missing[0][0]} of pipeline stage {missing[0][1]} is missing")
    return files


def _collect(folder: Path, states: Mapping[tuple[int, int], Any], model: ModelConfig) -> dict[str, _Parts]:
    """{name: shards} of every parameter, with layers numbered over the whole model."""
    tensor, pipeline = (max(rank) + 1 for rank in zip(*states, strict=True))
    args = states[0, 0].get("args")
    args = args.state if isinstance(args, Record) and isinstance(args.state, dict) else {}
    for key, count in (("tensor_model_parallel_size", tensor), ("pipeline_model_parallel_size", pipeline)):
        if args.get(key, count) != count:
            raise CheckpointError(f"{folder} has {count} ranks, but its arguments say {key}={shown(args[key])}")
    parts: dict[str, _Parts] = {}
    for rank in range(tensor):
        before = 0
        chunks = [_chunks(states[rank, stage]) for stage in range(pipeline)]
        if len({len(stage) for stage in chunks}) != 1:
            raise CheckpointError(f"{folder}: pipeline stages hold different numbers of chunks of the model")
        for chunk in (stage[number] for number in range(len(chunks[0])) for stage in chunks):
            layers = 0
            for name, stored in _named_tensors(chunk):
                if match := LAYER.fullmatch(name):
                    layers = max(layers, int(match[1]) + 1)
                    name = f"decoder.layers.{before + int(match[1])}.{match[2]}"
                tied_copy = model.tie_embeddings and name in (OUTPUT, "word_embeddings_for_head.weight")
                found = parts.setdefault(EMBEDDING if tied_copy else name, _Parts())
                (found.copies if tied_copy else found.shards).append(stored)
            before += layers
    return parts


def _chunks(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The model in a file, or its chunks if the pipeline is interleaved."""
    if isinstance(state.get("model"), dict):
        return [state["model"]]
    chunks = [state[f"model{number}"] for number in range(len(state)) if isinstance(state.get(f"model{number}"), dict)]
    if not chunks:
        raise CheckpointError(f"a {FILE} holds no model")
    return chunks


def _named_tensors(values: Mapping[Any, Any]) -> Iterator[tuple[str, StoredTensor]]:
    """(current name, tensor) of the parameters in a state dict, which may contain other dicts.

    Raises CheckpointError for a dict that occurs twice (it may contain itself) and for names that are too long.
    """
    waiting, seen = [("", values)], {id(values)}
    while waiting:
        prefix, found = waiting.pop()
        for key, value in found.items():
            name = f"{prefix}{shown(key) if not isinstance(key, str) else key[:NAME_LIMIT]}"
            if len(name) >= NAME_LIMIT:
                raise CheckpointError(f"a {FILE} names a tensor {shown(name)}, which is not the name of a parameter")
            if isinstance(value, dict):
                if id(value) in seen:
                    raise CheckpointError(f"a {FILE} holds a dict twice, the second time as {shown(name)}")
                seen.add(id(value))
                waiting.append((f"{name}.", value))
            elif isinstance(value, StoredTensor) and not name.endswith("._extra_state"):
                yield canonical(name), value


def _check(folder: Path, parts: Mapping[str, _Parts], model: ModelConfig, ranks: int) -> None:
    """Raises CheckpointError unless the shards of all ranks have the same dtype and form the model's parameters."""
    problems, shapes = [], {}
    for name, found in parts.items():
        shards = found.shards
        if len(shards) != ranks or len(found.copies) not in (0, ranks):
            problems.append(f"{name} is held by {len(shards)} of {ranks} tensor-parallel ranks")
        elif len({(shard.shape, shard.dtype) for shard in (*shards, *found.copies)}) != 1:
            problems.append(f"{name} has different shapes or dtypes on different ranks")
        else:
            axis, _ = cut(name, model) if name in parameters(model) else (None, 1)
            shapes[name] = tuple(n * ranks if number == axis else n for number, n in enumerate(shards[0].shape))
    raise_problems(folder, problems)
    check_parameters(folder, shapes, model)


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes the weights into an empty folder, as a checkpoint of one rank."""
    iteration = folder / f"iter_{source.step:07d}"
    (iteration / "mp_rank_00").mkdir(parents=True)
    weights = {
        name: lazy(source, [f"model/{name}"], bar)
        for name in parameters(source.model)
        if f"model/{name}" in source.tensors
    }
    state = {
        "args": namespace(source.model, source.step),
        "checkpoint_version": 3.0,
        "iteration": source.step,
        "model": weights,
    }
    zips.save(iteration / "mp_rank_00" / FILE, state)
    (iteration / COMPANION).write_text(companion(source.model, source.step))
    (folder / TRACKER).write_text(str(source.step))


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=False)
