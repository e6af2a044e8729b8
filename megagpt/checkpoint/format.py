"""The files of a checkpoint folder, and the checks of untrusted files.

    step_00000100/
        rank_00000.safetensors   shards of tensors and rank 0's own tensors; one such file per rank that has tensors
        index.json               for every rank file, in the order of its data: name, dtype and place of every tensor
        state.json               the training loop's values
        manifest.json            run and configuration, and the size and SHA-256 of every other file; written last

The header of a rank file follows from its index entries. So it is compared with the header that this code would write,
and headers of other origin are never parsed. The manifest, including its own digest, must be identical to the text that
this code would write for its values.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, Self

import torch

from megagpt.checkpoint.files import JSON_LIMIT, FileInfo, check_size, open_regular, parse_json, read_bytes, shown
from megagpt.checkpoint.geometry import coverage_flaw
from megagpt.errors import CheckpointError
from megagpt.parallel.shards import Shard, ShardMetadata

FORMAT = 1
"""Version of the format; only this version is written and read."""
MANIFEST, INDEX, STATE = "manifest.json", "index.json", "state.json"
STEP = re.compile(r"step_([0-9]{8,12})")
RANK_FILE = re.compile(r"rank_[0-9]{5,7}\.safetensors")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_DIMENSIONS, MAX_ELEMENTS = 8, 1 << 50
MAX_HEADER = 100_000_000  # limit of the safetensors library
INDEX_LIMIT = 256 << 20
"""Largest index.json that is read, in bytes. With ZeRO stage 3 it has one entry per parameter and rank."""
INDEX_VALUES = INDEX_LIMIT // 14
"""Most JSON values in index.json: an entry has more than 220 bytes and counts as 16 values."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the dtypes that can be stored."""
CODES = {dtype: code for code, dtype in DTYPES.items()}


def memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    flat = tensor.as_strided((tensor.numel(),), (1,))  # view(-1) can keep another stride for a single element
    return memoryview(flat.view(torch.uint8).numpy())


def step_folder(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step_{step:08d}"


def rank_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True)
class StoredShard(ShardMetadata):
    """A shard as it is stored in a rank file."""

    dtype: str
    """safetensors' name of the dtype."""
    private: bool = False
    """Whether it is a rank's own tensor (such as a random number generator's state), not a shard of a shared one."""

    @classmethod
    def of(cls, shard: Shard, private: bool = False) -> Self:
        """The entry that describes a shard. Raises CheckpointError when the shard cannot be stored."""
        if not NAME.fullmatch(shard.name):
            raise CheckpointError(f"{shard.name!r} cannot be a tensor's name: use letters, digits and _ . / -")
        if shard.data.dtype not in CODES:
            raise CheckpointError(f"{shard.name}: dtype {shard.data.dtype} cannot be stored")
        if flaw := shard.flaw():
            raise CheckpointError(f"{shard.name}: {flaw}")
        return cls(
            name=shard.name,
            global_shape=shard.global_shape,
            offset=shard.offset,
            shape=shard.shape,
            flat=shard.flat,
            dtype=CODES[shard.data.dtype],
            private=private,
        )

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Reads an entry from untrusted JSON. Raises ValueError that names the flaw."""
        if not isinstance(value, dict) or set(value) != FIELDS:
            raise ValueError(f"expected the fields {', '.join(sorted(FIELDS))}")
        name = value["name"]
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is not a tensor's name")
        if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
            raise ValueError(f"{name}: unknown dtype {shown(value['dtype'])}")
        if not isinstance(value["private"], bool):
            raise ValueError(f"{name}: private must be true or false")
        shapes = {key: _integers(value[key], f"{name}: {key}") for key in ("global_shape", "offset", "shape")}
        flat = None if value["flat"] is None else _integers(value["flat"], f"{name}: flat")
        if flat is not None and len(flat) != 2:
            raise ValueError(f"{name}: a flat range has two ends, not {len(flat)}")
        entry = cls(name, **shapes, flat=flat, dtype=value["dtype"], private=value["private"])
        if prod(max(n, 1) for n in entry.global_shape) > MAX_ELEMENTS:
            raise ValueError(f"{name}: {entry.global_shape} is too large")
        if flaw := entry.flaw():
            raise ValueError(f"{name}: {flaw}")
        return entry

    @property
    def torch_dtype(self) -> torch.dtype:
        """PyTorch's dtype."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.numel * self.torch_dtype.itemsize


FIELDS = {"name", "global_shape", "offset", "shape", "flat", "dtype", "private"}


def _integers(value: Any, what: str) -> tuple[int, ...]:
    """Reads a short list of non-negative integers from untrusted JSON."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in value):
        raise ValueError(f"{what} must be a list of at most {MAX_DIMENSIONS} non-negative integers")
    return tuple(value)


def header(entries: Iterable[StoredShard]) -> bytes:
    """The first bytes of the safetensors file with `entries`. Raises ValueError for two entries with the same label."""
    tensors: dict[str, Any] = {}
    position = 0
    for entry in entries:
        if entry.label in tensors:
            raise ValueError(f"{entry.label} is there twice")
        offsets = [position, position + entry.nbytes]
        tensors[entry.label] = {"dtype": entry.dtype, "shape": list(entry.data_shape), "data_offsets": offsets}
        position += entry.nbytes
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    if len(text) > MAX_HEADER:
        raise ValueError(f"{len(tensors):,} tensors are too many for one file")
    return len(text).to_bytes(8, "little") + text


def check_coverage(entries: Iterable[StoredShard]) -> None:
    """Raises ValueError unless the shards of each tensor cover it exactly once and agree in global shape and dtype."""
    tensors: dict[str, list[StoredShard]] = {}
    for entry in entries:
        if not entry.private:
            tensors.setdefault(entry.name, []).append(entry)
    for name, parts in tensors.items():
        for part in parts:
            if (part.global_shape, part.dtype) != (parts[0].global_shape, parts[0].dtype):
                described = [f"{p.dtype} {list(p.global_shape)}" for p in (parts[0], part)]
                raise ValueError(f"the shards of {name} disagree: {' and '.join(described)}")
        if flaw := coverage_flaw(parts):
            raise ValueError(f"{name}: {flaw}")


def dump_index(files: Mapping[str, Iterable[StoredShard]]) -> str:
    """The text of index.json."""
    return json.dumps({name: [asdict(entry) for entry in entries] for name, entries in sorted(files.items())})


def dump_manifest(values: Mapping[str, Any]) -> str:
    """The text of manifest.json: the values and the SHA-256 of their text."""
    digest = sha256(json.dumps(values, indent=1, sort_keys=True).encode()).hexdigest()
    return json.dumps({**values, "digest": digest}, indent=1, sort_keys=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks the manifest of the checkpoint folder `path`: digest, version, step and file list.

    Raises: CheckpointError naming the file.
    """
    file = path / MANIFEST
    data = read_bytes(file, JSON_LIMIT)
    values = parse_json(data, file)
    if not isinstance(values, dict) or not isinstance(values.get("files"), dict):
        raise CheckpointError(f"{file} is not a checkpoint's manifest")
    values.pop("digest", None)
    try:
        written = dump_manifest(values).encode()
    except RecursionError:
        raise CheckpointError(f"{file} is not a checkpoint's manifest: its values are nested too deeply") from None
    if written != data:
        raise CheckpointError(f"{file} is corrupt: its text does not match its digest")
    if values.get("format") != FORMAT:
        raise CheckpointError(f"{file} has format {shown(values.get('format'))}; this version reads format {FORMAT}")
    if (
        not (match := STEP.fullmatch(path.name))
        or type(values.get("step")) is not int
        or int(match[1]) != values["step"]
    ):
        raise CheckpointError(f"{file} is of step {shown(values.get('step'))}, but its folder is {path.name}")
    for name, info in values["files"].items():
        if name not in (INDEX, STATE) and not RANK_FILE.fullmatch(name):
            raise CheckpointError(f"{file} lists {shown(name)}, which is not a file of a checkpoint")
        if not isinstance(info, dict) or set(info) != {"size", "sha256"}:
            raise CheckpointError(f"{file}: {name} needs a size and a sha256")
        if type(info["size"]) is not int or not DIGEST.fullmatch(str(info["sha256"])):
            raise CheckpointError(f"{file}: the size or the sha256 of {name} is malformed")
    if not {INDEX, STATE} <= set(values["files"]):
        raise CheckpointError(f"{file} does not list both {INDEX} and {STATE}")
    return values


def read_index(path: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[StoredShard, ...]]:
    """Reads and checks index.json of the checkpoint folder `path` and the header of every rank file.

    It checks everything that does not need the data: names, shapes, ranges, coverage, headers and sizes.

    Raises: CheckpointError naming the file and the shard.
    """
    file = path / INDEX
    values = parse_json(read_bytes(file, INDEX_LIMIT), file, INDEX_VALUES)
    listed = set(manifest["files"]) - {INDEX, STATE}
    if not isinstance(values, dict) or set(values) != listed or not all(isinstance(v, list) for v in values.values()):
        raise CheckpointError(f"{file} and {MANIFEST} list different rank files")
    index = {}
    for name, entries in values.items():
        try:
            index[name] = tuple(StoredShard.parse(entry) for entry in entries)
            expected = header(index[name])
        except ValueError as error:
            raise CheckpointError(f"{file}: {name}: {error}") from error
        size = len(expected) + sum(entry.nbytes for entry in index[name])
        with open_regular(path / name) as rank:
            check_size(path / name, os.fstat(rank.fileno()).st_size, manifest["files"][name]["size"])
            if size != manifest["files"][name]["size"] or rank.read(len(expected)) != expected:
                raise CheckpointError(f"{path / name} is not what {INDEX} says: its header or its size differs")
    try:
        check_coverage(entry for entries in index.values() for entry in entries)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return index


@dataclass(frozen=True)
class ShardLocation:
    """A stored shard, the file that holds it, and the byte at which its data begins."""

    entry: StoredShard
    file: str
    position: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest, index and headers are consistent. `loading.verify` checks its data."""

    path: Path
    manifest: dict[str, Any]
    index: dict[str, tuple[StoredShard, ...]]
    tensors: dict[str, list[ShardLocation]] = field(default_factory=dict)
    """{name of a shared tensor: its shards}."""
    private: dict[str, list[ShardLocation]] = field(default_factory=dict)
    """{name of a rank's file: the rank's own tensors}."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a checkpoint folder. The folder may be a link; links inside are refused. Raises CheckpointError."""
        if not path.is_dir():
            what = f"a link to {path.readlink()}, where no folder is" if path.is_symlink() else "not a folder"
            raise CheckpointError(f"{path} is {what}")
        manifest = read_manifest(path)
        self = cls(path, manifest, read_index(path, manifest))
        for file, entries in self.index.items():
            position = len(header(entries))
            for entry in entries:
                group = self.private.setdefault(file, []) if entry.private else self.tensors.setdefault(entry.name, [])
                group.append(ShardLocation(entry, file, position))
                position += entry.nbytes
        return self

    def files(self) -> dict[str, FileInfo]:
        """{file: size and SHA-256} of all files but the manifest, as the manifest lists them."""
        return {name: FileInfo(**info) for name, info in self.manifest["files"].items()}


def weights_content(path: Path) -> str:
    """SHA-256, hexadecimal, of a checkpoint's file list and score offset in its manifest.

    It identifies the weights independently of the folder's path. Raises CheckpointError.
    """
    manifest = read_manifest(path)
    meant = {name: manifest.get(name) for name in ("files", "score_offset")}
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()
