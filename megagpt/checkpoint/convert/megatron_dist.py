"""Megatron-Core's sharded checkpoints (torch_dist): torch.distributed.checkpoint's files, and common.pt beside them.

A tensor is cut in chunks by rank, and those of all layers may be one tensor whose first axis counts the layers, which
is how they are written here. Weights go along; the optimizer's state stays behind.
"""

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    VOCABULARY,
    LazySource,
    check_parameters,
    companion,
    find_model,
    lazy,
    parameters,
    raise_problems,
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
from megagpt.checkpoint.convert.pickles import StoredTensor, load, load_plain
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
STACKED = re.compile(r"decoder\.layers\.(?!\d)(.*)")
LINEARS = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
"""Layers beside whose weights Megatron-Core asks for a state, which is empty."""
LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")


@dataclass(frozen=True)
class _Chunk:
    """A box of a tensor, and where torch.save put it."""

    place: ShardMetadata
    file: Path
    start: int
    length: int

    def read(self) -> StoredTensor:
        """The tensor, not read yet. Raises CheckpointError."""
        stored = load(self.file, self.start, self.length)
        if not isinstance(stored, StoredTensor) or stored.shape != self.place.shape:
            raise CheckpointError(f"{self.file}: {self.place.label} is not a tensor of {list(self.place.shape)}")
        return stored


@dataclass(frozen=True)
class _Tensor:
    """A tensor, or one layer of a tensor that holds all layers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[_Chunk, ...]
    layer: int | None = None

    def read(self, rows: int | None) -> torch.Tensor:
        """The whole of it, with `rows` rows where that is given: others are cut off, or zeros."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        whole = None
        for chunk in self.chunks:
            stored, offset, size = chunk.read(), chunk.place.offset, chunk.place.shape
            inside = 0
            if self.layer is not None:
                inside = self.layer - offset[0]
                offset, size = offset[1:], size[1:]
            if stored.dtype != self.dtype:
                raise CheckpointError(f"{chunk.file}: {chunk.place.label} is {stored.dtype}, not {self.dtype}")
            data = stored.read_flat(inside * prod(size), prod(size)).view(size)
            if size == shape:
                return data
            whole = torch.zeros(shape, dtype=self.dtype) if whole is None else whole
            target = whole[tuple(slice(first, first + n) for first, n in zip(offset, size, strict=True))]
            target.copy_(data[: target.shape[0]])
        return whole


def detect(path: Path) -> bool:
    """Whether there are a .metadata and a common.pt, in `path` or in the iteration that its tracker file names."""
    folder = iteration_folder(path) if path.is_dir() else path
    return (folder / METADATA).is_file() and (folder / COMMON).is_file()


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a checkpoint. Raises CheckpointError naming the file and the tensor."""
    folder = iteration_folder(path)
    common = load(folder / COMMON)
    if not isinstance(common, dict):
        raise CheckpointError(f"{folder / COMMON} does not hold what Megatron-LM saves")
    model = find_model([folder, path], like) or model_of(arguments(common, folder), folder)
    found = dict(_tensors(folder))
    check_parameters(folder, {name: tensor.shape for name, tensor in found.items()}, model)
    problems = [f"{name}: {flaw}" for name, tensor in found.items() if (flaw := _coverage(tensor))]
    raise_problems(folder, problems)
    tensors, readers = {}, {}
    for name, shape in parameters(model).items():
        tensors[f"model/{name}"] = TensorInfo(shape, found[name].dtype)
        rows = model.padded_vocab_size if name in VOCABULARY else None
        readers[f"model/{name}"] = lambda tensor=found[name], rows=rows: tensor.read(rows)
    step = common.get("iteration", 0)
    return LazySource(path, NAME, model, step if isinstance(step, int) else 0, tensors, readers)


def _coverage(tensor: _Tensor) -> str | None:
    """The part of a tensor that is missing or there twice; None if there is none."""
    if not prod(tensor.shape):
        return None
    skip = 0 if tensor.layer is None else 1
    places = [
        ShardMetadata(c.place.name, tensor.shape, c.place.offset[skip:], c.place.shape[skip:], None)
        for c in tensor.chunks
    ]
    return coverage_flaw(places) if places else "it is missing"


def _tensors(folder: Path) -> Iterator[tuple[str, _Tensor]]:
    """The model's tensors by our names, one a layer. Raises CheckpointError."""
    where = folder / METADATA
    metadata = load_plain(where)
    try:
        stored: dict[str, list[_Chunk]] = {}
        described = metadata.state["state_dict_metadata"]
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        for index, info in metadata.state["storage_data"].items():
            name, shapes = index.state["fqn"], described[index.state["fqn"]].state
            if shapes is not None and "chunks" in shapes and _is_models(name):
                chunk = _chunk(folder, sizes, name, shapes, index.state["offset"], info.state)
                stored.setdefault(name, []).append(chunk)
        for name, chunks in stored.items():
            shapes = described[name].state
            yield from _layers(canonical(name), shapes["size"], shapes["properties"].state[0], chunks)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is not torch.distributed.checkpoint's: {type(error).__name__} {error}"
        ) from None


def _is_models(name: str) -> bool:
    return name.startswith(("embedding.", "decoder.", "output_layer.")) and "_extra_state" not in name


def _chunk(folder: Path, sizes: dict[str, int], name: str, shapes: Any, offset: Any, info: Any) -> _Chunk:
    """A chunk, its place within the tensor and its file checked."""
    file, start, length = info["relative_path"], info["offset"], info["length"]
    if info.get("transform_descriptors"):
        raise CheckpointError(f"{folder / METADATA}: {name} is stored transformed (compressed, say), which is not read")
    if not isinstance(file, str) or not FILE.fullmatch(file) or file not in sizes:
        raise CheckpointError(f"{folder / METADATA}: {name} is said to be in {file!r:.200}, which is not a file of it")
    if not 0 <= start <= start + length <= sizes[file]:
        raise CheckpointError(
            f"{folder / file} has {sizes[file]:,} bytes, but {name} is said to lie beyond: it was cut"
        )
    wanted = tuple(offset) if offset is not None else (0,) * len(shapes["size"])
    (box,) = [chunk.state["sizes"] for chunk in shapes["chunks"] if chunk.state["offsets"] == wanted]
    place = ShardMetadata(name, shapes["size"], wanted, box, None)
    if flaw := place.flaw():
        raise CheckpointError(f"{folder / METADATA}: {name}: {flaw}")
    return _Chunk(place, folder / file, start, length)


def _layers(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, chunks: list[_Chunk]
) -> Iterator[tuple[str, _Tensor]]:
    """The tensor, or each layer of one that holds all."""
    match = STACKED.fullmatch(name)
    if match is None:
        yield name, _Tensor(shape, dtype, tuple(chunks))
        return
    for layer in range(shape[0]):
        held = [c for c in chunks if c.place.offset[0] <= layer < c.place.offset[0] + c.place.shape[0]]
        yield f"decoder.layers.{layer}.{match[1]}", _Tensor(shape[1:], dtype, tuple(held), layer)


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes the weights into an empty folder, a file a tensor, so that no more than one is in memory."""
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
