"""Describes a conversion from headers and configurations, without reading or writing weights."""

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path

import torch

from megagpt.checkpoint.convert import hugging_face, native, safetensors_files, weights
from megagpt.checkpoint.convert import hugging_face_config as about
from megagpt.checkpoint.convert.base import Format, Source
from megagpt.checkpoint.convert.common import inner_folder, parameters
from megagpt.checkpoint.convert.convert import (
    FORMATS,
    WITH_TOKENIZER,
    check_head,
    opened,
    recognised,
    sorted_out,
)
from megagpt.checkpoint.convert.families.registry import BY_CLASS, BY_TYPE
from megagpt.checkpoint.convert.tokenizers import check_tokenizer
from megagpt.checkpoint.files import parse_json, read_bytes
from megagpt.checkpoint.format import Checkpoint
from megagpt.checkpoint.format import header as native_header
from megagpt.checkpoint.loading import first_choice
from megagpt.config.schema import ModelConfig
from megagpt.data.companions import MODEL_TYPE
from megagpt.errors import CheckpointError

WEIGHT_FILES = (safetensors_files.SINGLE, safetensors_files.INDEX, weights.SINGLE, weights.INDEX)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BASE_BYTES = 300 << 20
"""Memory of Python and PyTorch without tensors, measured (docs/benchmarks/conversion.md)."""
START_SECONDS = 5.0
"""CPU seconds before the first byte: Python and PyTorch start (docs/benchmarks/conversion.md)."""
RATE = 300e6
"""Bytes per CPU second after that in either direction, checksums included (docs/benchmarks/conversion.md)."""
LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Renamed:
    """A tensor of transformers, the same in every layer, and megagpt's parameter that contains it."""

    theirs: str
    """Name, with N in place of the layer's number."""
    their_shape: tuple[int, ...]
    ours: str
    our_shape: tuple[int, ...]
    count: int
    """Number of such tensors."""


@dataclass
class DryRun:
    """Description of a planned conversion. Sizes are in bytes."""

    source: Path
    target: Path
    to: str
    refused: list[str] = field(default_factory=list)
    """Reasons why the conversion would be refused; empty if none is known."""
    format: str = ""
    """Name of the source's format."""
    family: str = ""
    """transformers' class, if source or target is a folder of transformers."""
    model: ModelConfig | None = None
    parameters: int = 0
    read: dict[str, int] = field(default_factory=dict)
    """{file that would be read: its size}; empty if there is a configuration but no weights."""
    tensors: int = 0
    """Number of tensors that would be read."""
    bytes: int = 0
    """Size of these tensors."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """{dtype: number of tensors}, in megagpt's layout."""
    renamed: list[Renamed] = field(default_factory=list)
    dropped: tuple[str, ...] = ()
    """Kinds of tensors that the target's format cannot store."""
    written: dict[str, int] = field(default_factory=dict)
    """{file of weights that would be written: its size}, for the formats megagpt and huggingface."""
    written_bytes: int = 0
    """Total size of the written files; for other formats, of the written tensors."""
    free: int = 0
    """Free bytes on the target's disk."""
    memory: int = 0
    """Peak memory of the conversion."""
    proof_memory: int = 0
    """Peak memory of the proof, which holds one side's model in fp32 at a time."""
    cpu_seconds: float = 0.0
    """CPU seconds of the conversion without its proof: `START_SECONDS`, then the bytes at `RATE`."""
    notes: list[str] = field(default_factory=list)
    """Further remarks."""


def dry_run(path: Path, target: Path, to: str, like: ModelConfig | None = None) -> DryRun:
    """Describes what `convert` would do with the same arguments. A folder of transformers may lack its weights.

    Raises CheckpointError when `path` is not a checkpoint; other reasons to refuse the conversion are in `refused`.
    """
    plan = DryRun(path, target, to)
    if os.path.lexists(target):
        plan.refused.append(f"{target} exists: give a new name, or remove it")
    found, wanted = recognised(path), FORMATS[to]
    plan.format = found.name
    try:
        source = opened(replace(found, open_source=partial(_open, found, plan)), path, like)
    except CheckpointError as error:
        plan.refused.append(str(error))
        return plan
    _describe(plan, source, wanted)
    for check in (_head, _tokenizer, _write):
        try:
            check(plan, source, found, wanted)
        except CheckpointError as error:
            plan.refused.append(str(error))
    if plan.written_bytes > plan.free:
        plan.refused.append(f"{plan.written_bytes:,} bytes would be written, and {plan.free:,} are free")
    return plan


def _open(found: Format, plan: DryRun, path: Path, like: ModelConfig | None) -> Source:
    """The source, opened from headers, or from config.json if there are no weights."""
    if found.name == native.NAME:
        inner_folder(path / "checkpoints")
        if (folder := first_choice(path)) is None:
            raise CheckpointError(f"{path} has no checkpoint")
        checkpoint = Checkpoint.open(folder)
        plan.read = {name: info.size for name, info in checkpoint.files().items() if name in checkpoint.index}
        plan.notes.append(f"{folder} is taken; the files' hashes were not checked, which the conversion does")
        return native.source_of(checkpoint)
    if found.name == hugging_face.NAME:
        return _open_transformers(plan, path, like)
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink())
    plan.read = {str(file.relative_to(path)): file.stat().st_size for file in files}
    return found.open_source(path, like)


def _open_transformers(plan: DryRun, path: Path, like: ModelConfig | None) -> Source:
    if any(os.path.lexists(path / name) for name in WEIGHT_FILES):
        source = hugging_face.open_source(path, like, compare=False)
        stored = weights.open_folder(path).values()
        plan.read = {file.name: file.stat().st_size for file in sorted({tensor.path for tensor in stored})}
        plan.tensors = len(stored)
        plan.bytes = sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in stored)
        return source
    values = parse_json(read_bytes(path / hugging_face.CONFIG, about.CONFIG_LIMIT), path / hugging_face.CONFIG)
    named = (values.get("dtype") or values.get("torch_dtype")) if isinstance(values, dict) else None
    named = named if isinstance(named, str) else None
    source = hugging_face.promised(path, DTYPES.get(named, torch.float32))
    plan.notes.append(
        f"{path} has no weights: this is what its config.json promises, in {named}"
        if named in DTYPES
        else f"{path} has no weights and its config.json no dtype: this is what it promises in float32"
    )
    rows = renamed(_architecture(source), source.model)
    itemsize = DTYPES.get(named, torch.float32).itemsize
    plan.tensors = sum(row.count for row in rows)
    plan.bytes = sum(row.count * prod(row.their_shape) * itemsize for row in rows)
    return source


def _architecture(source: Source) -> str:
    """transformers' class that the source has, or that it would be converted to. Raises CheckpointError."""
    model_type = source.extras.config.get(MODEL_TYPE)
    if source.format == hugging_face.NAME:
        return BY_TYPE[model_type].architecture
    return about.architecture_of(source.model, model_type)


def _describe(plan: DryRun, source: Source, wanted: Format) -> None:
    """Fills in the fields that follow from the source."""
    carried, plan.dropped = sorted_out(source, wanted)
    infos = [source.tensors[name] for name in carried]
    plan.model = source.model
    plan.parameters = sum(prod(shape) for shape in parameters(source.model).values())
    plan.tensors = plan.tensors or len(source.tensors)
    plan.bytes = plan.bytes or sum(info.size for info in source.tensors.values())
    plan.dtypes = dict(Counter(str(info.dtype).removeprefix("torch.") for info in source.tensors.values()))
    size = sum(info.size for info in infos)
    plan.memory = BASE_BYTES + 2 * max(info.size for info in infos)  # a tensor as it is read and in its new layout
    plan.proof_memory = BASE_BYTES + 4 * plan.parameters
    plan.cpu_seconds = START_SECONDS + size / RATE
    plan.written_bytes = size
    existing = next(folder for folder in plan.target.absolute().parents if folder.is_dir())
    plan.free = shutil.disk_usage(existing).free
    if source.format == hugging_face.NAME:
        plan.family = _architecture(source)
        plan.renamed = renamed(plan.family, source.model)


def _head(plan: DryRun, source: Source, found: Format, wanted: Format) -> None:
    check_head(plan.source, source.model.head, found, wanted)


def _tokenizer(plan: DryRun, source: Source, found: Format, wanted: Format) -> None:
    if wanted.name in WITH_TOKENIZER:
        check_tokenizer(plan.source, source)
        if source.tokenizer is None:
            plan.notes.append(f"{plan.source} has no tokenizer.json: the right one must be copied into {plan.target}")


def _write(plan: DryRun, source: Source, found: Format, wanted: Format) -> None:
    """Fills in the files that would be written."""
    if wanted.name == native.NAME:
        for number, entries in enumerate(native.grouped(source)):
            size = len(native_header(entries)) + sum(entry.nbytes for entry in entries)
            plan.written[native.rank_file(number)] = size
    elif wanted.name == hugging_face.NAME:
        architecture = about.architecture_of(source.model, source.extras.config.get(MODEL_TYPE))
        outputs = [(name, info) for name, info, _ in hugging_face.outputs_of(source, architecture, None)]
        for name, numbers in safetensors_files.shards([info for _, info in outputs]).items():
            start, size = safetensors_files.header(outputs[number] for number in numbers)
            plan.written[name] = len(start) + size
        if source.format != hugging_face.NAME:
            plan.family = architecture
            plan.renamed = renamed(architecture, BY_CLASS[architecture].held(source.model))
    plan.written_bytes = sum(plan.written.values()) or plan.written_bytes


def renamed(architecture: str, model: ModelConfig) -> list[Renamed]:
    """transformers' tensors and megagpt's parameters, with one entry for all layers."""
    counts: Counter[tuple[str, tuple[int, ...], str, tuple[int, ...]]] = Counter()
    for ours, shape in parameters(model).items():
        for part in hugging_face.parts(architecture, ours, shape, model):
            counts[pattern(part.name), part.shape, pattern(ours), shape] += 1
    return [Renamed(*key, count) for key, count in counts.items()]


def pattern(name: str) -> str:
    """A tensor's name with N in place of its layer's number."""
    return LAYER.sub("N", name, count=1)
