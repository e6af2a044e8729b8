"""Megatron-Core's sharded checkpoints (torch_dist): files of torch.distributed.checkpoint, and a common.pt.

Megatron-Core since 0.19 writes no common.pt, but stores its content as one of the shards; it reads both forms.

A tensor is divided into chunks by rank. The tensors of all layers may be stacked into one tensor whose first axis
counts the layers; megagpt writes them so. Only weights are converted, not the optimizer's state.
"""

import json
import os
import pickle
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from tqdm import tqdm

from megagpt.checkpoint.convert import zips
from megagpt.checkpoint.convert.base import Format, Source, TensorInfo
from megagpt.checkpoint.convert.common import (
    COMPANION,
    LAYERS_LIMIT,
    VOCABULARY,
    LazySource,
    check_parameters,
    companion,
    find_model,
    lazy,
    parameters,
)
from megagpt.checkpoint.convert.megatron_args import (
    TRACKER,
    arguments,
    canonical,
    fused,
    iteration_folder,
    model_of,
    namespace,
)
from megagpt.checkpoint.convert.pickles import Record, load, load_plain, sizes
from megagpt.checkpoint.convert.stored import StoredTensor
from megagpt.checkpoint.files import allocate, shown
from megagpt.checkpoint.geometry import coverage_flaw
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from megagpt.parallel.shards import ShardMetadata

NAME = "megatron-dist"
METADATA, COMMON, CONFIG = ".metadata", "common.pt", "metadata.json"
BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
COMMON_STATE = "common_state/shard_0_1"
"""Name of the shard that replaces common.pt."""
STACKED = re.compile(r"decoder\.layers\.(?!\d)(.*)")
PIECES_LIMIT = 1 << 20
"""Most pieces of a stacked tensor."""
LINEARS = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
"""Modules for which Megatron-Core also needs an extra state, which is empty."""
LAYER = re.compile(r"decoder\.layers\.([0-9]{1,6})\.(.*)")


@dataclass(frozen=True)
class _Chunk:
    """A box of a tensor, and the bytes of a file in which torch.save stored it."""

    place: ShardMetadata
    file: Path
    start: int
    length: int

    @cached_property
    def stored(self) -> StoredTensor:
        """The tensor; its data is not read yet. Raises CheckpointError."""
        stored = load(self.file, self.start, self.length)
        if not isinstance(stored, StoredTensor) or stored.shape != self.place.shape:
            raise CheckpointError(f"{self.file}: {self.place.label} is not a tensor of {list(self.place.shape)}")
        return stored


@dataclass(frozen=True)
class _Tensor:
    """A tensor, or one layer of a stacked tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[_Chunk, ...]
    layer: int | None = None

    def read(self, rows: int | None) -> torch.Tensor:
        """The whole tensor. rows: wanted number of rows (surplus rows are cut off, missing ones are zeros), or None."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        whole = None
        for chunk in self.chunks:
            stored, offset, size = chunk.stored, chunk.place.offset, chunk.place.shape
            inside = 0
            if self.layer is not None:
                inside = self.layer - offset[0]
                offset, size = offset[1:], size[1:]
            if stored.dtype != self.dtype:
                raise CheckpointError(f"{chunk.file}: {chunk.place.label} is {stored.dtype}, not {self.dtype}")
            data = stored.read_flat(inside * prod(size), prod(size)).view(size)
            if size == shape:
                return data
            whole = allocate(shape, self.dtype, chunk.file).zero_() if whole is None else whole
            target = whole[tuple(slice(first, first + n) for first, n in zip(offset, size, strict=True))]
            target.copy_(data[: target.shape[0]])
        return whole


def detect(path: Path) -> bool:
    """Whether there are Megatron-Core's files in `path` or in the iteration that its tracker file names."""
    folder = iteration_folder(path) if path.is_dir() else path
    return os.path.lexists(folder / METADATA) and any(os.path.lexists(folder / name) for name in (COMMON, CONFIG))


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a checkpoint. Raises CheckpointError naming the file and the tensor."""
    folder = iteration_folder(path)
    common = load(folder / COMMON) if os.path.lexists(folder / COMMON) else _common_state(folder)
    if not isinstance(common, dict):
        raise CheckpointError(
            f"{folder}: {COMMON}, or the shard in its place, does not have the contents that Megatron-LM saves"
        )
    model = find_model([folder, path], like) or model_of(arguments(common, folder), folder)
    found = dict(_tensors(folder))
    check_parameters(folder, {name: tensor.shape for name, tensor in found.items()}, model)
    tensors, readers = {}, {}
    for name, shape in parameters(model).items():
        tensors[f"model/{name}"] = TensorInfo(shape, found[name].dtype)
        rows = model.padded_vocab_size if name in VOCABULARY else None
        readers[f"model/{name}"] = lambda tensor=found[name], rows=rows: tensor.read(rows)
    step = common.get("iteration", 0)
    return LazySource(path, NAME, model, step if type(step) is int else 0, tensors, readers)


def _common_state(folder: Path) -> Any:
    """The state that versions since 0.19 store in place of common.pt. Raises CheckpointError."""
    where = folder / METADATA
    metadata = load_plain(where)
    try:
        placed = metadata.state["storage_data"]
        found = [info.state for index, info in placed.items() if index.state["fqn"] == COMMON_STATE]
        if len(found) != 1:
            raise CheckpointError(f"{folder} has neither {COMMON} nor one {COMMON_STATE}")
        chunk = _chunk(folder, _files(folder), ShardMetadata(COMMON_STATE, (1,), (0,), (1,), None), found[0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is not torch.distributed.checkpoint's: {type(error).__name__} {error!s:.300}"
        ) from None
    held = load(chunk.file, chunk.start, chunk.length)
    return held[0] if isinstance(held, list) and len(held) == 1 else held


def _files(folder: Path) -> dict[str, int]:
    """{name: size in bytes} of the regular files in a folder."""
    inside = {file.name: file.lstat() for file in folder.iterdir()}
    return {name: about.st_size for name, about in inside.items() if stat.S_ISREG(about.st_mode)}


def _tensors(folder: Path) -> Iterator[tuple[str, _Tensor]]:
    """(our name, tensor) of the model's parameters, with stacked layers separated. Raises CheckpointError."""
    where = folder / METADATA
    metadata = load_plain(where)
    try:
        described = metadata.state["state_dict_metadata"]
        placed = metadata.state["storage_data"]
        chunks = _chunks(folder, described, placed)
        for name, held in chunks.items():
            shapes = described[name].state
            shape, dtype = sizes(shapes["size"]), shapes["properties"].state[0]
            if not isinstance(dtype, torch.dtype):
                raise CheckpointError(f"{where}: {name} has no dtype")
            if flaw := coverage_flaw(chunk.place for chunk in held):
                raise CheckpointError(f"{where}: {name}: {flaw}")
            yield from _layers(where, canonical(name), shape, dtype, held)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is not torch.distributed.checkpoint's: {type(error).__name__} {error!s:.300}"
        ) from None


def _chunks(folder: Path, described: Mapping[str, Record], placed: Mapping[Record, Record]) -> dict[str, list[_Chunk]]:
    """{name: chunks} of the model's tensors. Raises CheckpointError, also when chunks share bytes."""
    files = _files(folder)
    boxes: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
    found: dict[str, list[_Chunk]] = {}
    for index, info in placed.items():
        name = index.state["fqn"]
        shapes = described[name].state
        if shapes is None or "chunks" not in shapes or not _is_models(name):
            continue
        if name not in boxes:
            boxes[name] = {sizes(box.state["offsets"]): sizes(box.state["sizes"]) for box in shapes["chunks"]}
        shape, offset = sizes(shapes["size"]), index.state["offset"]
        offset = (0,) * len(shape) if offset is None else sizes(offset)
        place = ShardMetadata(name, shape, offset, boxes[name][offset], None)
        found.setdefault(name, []).append(_chunk(folder, files, place, info.state))
    spans = sorted(
        (chunk.file, chunk.start, chunk.length, chunk.place.label) for held in found.values() for chunk in held
    )
    for before, after in pairwise(spans):
        if before[0] == after[0] and before[1] + before[2] > after[1]:
            raise CheckpointError(
                f"{before[0]}: {before[3]} and {after[3]} overlap in the file, according to its metadata"
            )
    return found


def _is_models(name: str) -> bool:
    return name.startswith(("embedding.", "decoder.", "output_layer.")) and "_extra_state" not in name


def _chunk(folder: Path, files: Mapping[str, int], place: ShardMetadata, info: Mapping[str, Any]) -> _Chunk:
    """A chunk, after a check of its place within the tensor and of its file."""
    where, name = folder / METADATA, place.name
    file, start, length = info["relative_path"], info["offset"], info["length"]
    if info.get("transform_descriptors"):
        raise CheckpointError(f"{where}: {name} is stored transformed (for example compressed), which is not supported")
    if not isinstance(file, str) or not FILE.fullmatch(file) or file not in files:
        raise CheckpointError(f"{where}: {name} is stored in {shown(file)}, which is not a file of the checkpoint")
    if type(start) is not int or type(length) is not int or not 0 <= start <= start + length <= files[file]:
        raise CheckpointError(
            f"{folder / file} has {files[file]:,} bytes, but the metadata place {name} beyond its end: the file was cut"
        )
    if flaw := place.flaw():
        raise CheckpointError(f"{where}: {name}: {flaw}")
    return _Chunk(place, folder / file, start, length)


def _layers(
    where: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, chunks: list[_Chunk]
) -> Iterator[tuple[str, _Tensor]]:
    """The tensor itself, or each layer of a stacked tensor."""
    match = STACKED.fullmatch(name)
    if match is None:
        yield name, _Tensor(shape, dtype, tuple(chunks))
        return
    if shape[0] > LAYERS_LIMIT or sum(chunk.place.shape[0] for chunk in chunks) > PIECES_LIMIT:
        raise CheckpointError(f"{where}: {name} has {shape[0]:,} layers in {len(chunks):,} pieces, too many to be read")
    held: list[list[_Chunk]] = [[] for _ in range(shape[0])]
    for chunk in chunks:
        for layer in range(chunk.place.offset[0], chunk.place.offset[0] + chunk.place.shape[0]):
            held[layer].append(chunk)
    for layer, pieces in enumerate(held):
        yield f"decoder.layers.{layer}.{match[1]}", _Tensor(shape[1:], dtype, tuple(pieces), layer)


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes the weights into an empty folder, one file per tensor, so that only one tensor is in memory at a time."""
    iteration = folder / f"iter_{source.step:07d}"
    iteration.mkdir()
    layers, described, places = source.model.num_layers, {}, {}
    for number, name in enumerate(parameters(source.model)):
        info = source.tensors[f"model/{name}"]
        size = box = torch.Size(info.shape)
        offset = torch.Size([0] * len(size))
        key = name
        if match := LAYER.fullmatch(name):
            key = f"decoder.layers.{match[2]}"
            offset, box, size = torch.Size([int(match[1]), *offset]), torch.Size([1, *box]), torch.Size([layers, *size])
        tensor = described.setdefault(fused(key), TensorStorageMetadata(TensorProperties(info.dtype), size, []))
        tensor.chunks.append(ChunkStorageMetadata(offset, box))
        file = iteration / f"__0_{number}.distcp"
        zips.save(file, lazy(source, [f"model/{name}"], bar, tuple(box)))
        places[MetadataIndex(fused(key), offset)] = _StorageInfo(file.name, 0, file.stat().st_size)
    empty = iteration / "__0_state.distcp"
    zips.save(empty, [None])
    for name in (f"decoder.layers.{m}._extra_state/shard_{n}_{layers}" for m in LINEARS for n in range(layers)):
        described[name] = BytesStorageMetadata()
        places[MetadataIndex(name)] = _StorageInfo(empty.name, 0, empty.stat().st_size)
    args = namespace(source.model, source.step)
    zips.save(iteration / COMMON, {"args": args, "checkpoint_version": 3.0, "iteration": source.step})
    (iteration / CONFIG).write_text(json.dumps(BACKENDS))
    (iteration / COMPANION).write_text(companion(source.model, source.step))
    (iteration / METADATA).write_bytes(pickle.dumps(Metadata(described, storage_data=places)))
    (folder / TRACKER).write_text(str(source.step))


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=False)
