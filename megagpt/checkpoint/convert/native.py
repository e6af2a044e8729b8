"""megagpt's own checkpoints, in a run folder that training, generation and evaluation can use."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from megagpt import __version__
from megagpt.checkpoint.convert import hugging_face_extras as extras
from megagpt.checkpoint.convert.base import Format, Source, TensorInfo
from megagpt.checkpoint.convert.common import LazySource, inner_folder
from megagpt.checkpoint.files import CHUNK, allocate, sync_folder, write_file, write_text
from megagpt.checkpoint.format import (
    CODES,
    INDEX,
    MANIFEST,
    STATE,
    STEP,
    Checkpoint,
    StoredShard,
    dump_index,
    dump_manifest,
    header,
    memory,
    rank_file,
    step_folder,
)
from megagpt.checkpoint.format import (
    FORMAT as VERSION,
)
from megagpt.checkpoint.loading import LATEST, fill, find, verify
from megagpt.checkpoint.saved import buildable_config
from megagpt.checkpoint.world import World
from megagpt.config.load import to_dict
from megagpt.config.schema import Config, ModelConfig, OptimConfig
from megagpt.data.tokenizer import Tokenizer
from megagpt.parallel.shards import Shard
from megagpt.train.state import TrainState

NAME = "megagpt"
FILE_BYTES = 4 << 30
TOKENIZER = "tokenizer.json"
ALONE = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "virtual_pipeline_size": 1,
    "data_parallel_size": 1,
}


def detect(path: Path) -> bool:
    """Whether `path` is a checkpoint, a run folder, or a run's folder of checkpoints."""
    if STEP.fullmatch(path.name):
        return (path / MANIFEST).exists()
    return any(STEP.fullmatch(child.name) for folder in (path, path / "checkpoints") for child in folder.glob("step_*"))


def open_source(path: Path, like: ModelConfig | None) -> Source:
    """Opens a checkpoint, or a run's best or newest valid one, after checking its hashes. Raises CheckpointError."""
    world = World()
    inner_folder(path / "checkpoints")
    return source_of(verify(find(path, world), world))


def source_of(checkpoint: Checkpoint) -> Source:
    """An opened checkpoint as a source. Raises CheckpointError for a model that cannot be built."""
    config = buildable_config(checkpoint)
    model = config.model
    tensors = {
        name: TensorInfo(stored[0].entry.global_shape, stored[0].entry.torch_dtype)
        for name, stored in checkpoint.tensors.items()
    }
    readers = {name: _Reader(checkpoint, name, info) for name, info in tensors.items()}
    run = checkpoint.path.parent.parent
    return LazySource(
        path=checkpoint.path,
        format=NAME,
        model=model,
        step=checkpoint.manifest["step"],
        tensors=tensors,
        readers=readers,
        tokenizer=run / TOKENIZER if os.path.lexists(run / TOKENIZER) else None,
        embed=config.embed if model.head == "embedding" else None,
        extras=extras.load(run),
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    checkpoint: Checkpoint
    name: str
    info: TensorInfo

    def __call__(self) -> torch.Tensor:
        whole = allocate(self.info.shape, self.info.dtype, self.checkpoint.path)
        fill(self.checkpoint, [Shard.whole(self.name, whole)], strict=False, cast=False, world=World())
        return whole


def write(source: Source, folder: Path, bar: tqdm) -> None:
    """Writes a run folder with one checkpoint and the tokenizer."""
    step = folder / "checkpoints" / step_folder(source.step)
    step.mkdir(parents=True)
    index, files = {}, {}
    for number, entries in enumerate(grouped(source)):
        name = rank_file(number)
        start = header(entries)
        size = len(start) + sum(entry.nbytes for entry in entries)
        files[name] = write_file(step / name, _chunks(start, entries, source, bar), size)
        index[name] = entries
    files[INDEX] = write_text(step / INDEX, dump_index(index))
    files[STATE] = write_text(step / STATE, json.dumps(TrainState(step=source.step).to_dict()))
    manifest = {
        "run": "converted",
        "config": to_dict(Config(model=source.model, optim=_precision(source))),
        "layout": ALONE,
        "format": VERSION,
        "step": source.step,
        "world_size": len(index),
        "versions": {"megagpt": __version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
        "time": time.time(),
        "files": {name: dataclasses.asdict(info) for name, info in files.items()},
    }
    write_text(step / MANIFEST, dump_manifest(manifest))
    write_text(step.parent / LATEST, f"{step.name}\n")
    sync_folder(step)
    sync_folder(step.parent)
    tokenizer = Tokenizer.load(source.tokenizer) if source.tokenizer else None
    if tokenizer:
        write_text(folder / TOKENIZER, tokenizer.content.decode())
    extras.save(source.extras, tokenizer, folder)


def grouped(source: Source) -> Iterator[list[StoredShard]]:
    """The source's tensors as entries, grouped into files of about FILE_BYTES; larger dtypes first, for alignment."""
    entries = [
        StoredShard(name, info.shape, (0,) * len(info.shape), info.shape, None, CODES[info.dtype])
        for name, info in source.tensors.items()
    ]
    entries.sort(key=lambda entry: -entry.torch_dtype.itemsize)
    group: list[StoredShard] = []
    for entry in entries:
        if group and sum(e.nbytes for e in group) + entry.nbytes > FILE_BYTES:
            yield group
            group = []
        group.append(entry)
    yield group


def _chunks(start: bytes, entries: list[StoredShard], source: Source, bar: tqdm) -> Iterator[memoryview]:
    yield memoryview(start)
    for entry in entries:
        data = memory(source.read(entry.name))
        for position in range(0, len(data), CHUNK):
            yield data[position : position + CHUNK]
        bar.update(len(data))


def _precision(source: Source) -> OptimConfig:
    dtype = next(info.dtype for name, info in source.tensors.items() if name.startswith("model/"))
    return OptimConfig(precision="bf16" if dtype == torch.bfloat16 else "fp32")


FORMAT = Format(NAME, detect, open_source, write, carries_optimizer=True)
