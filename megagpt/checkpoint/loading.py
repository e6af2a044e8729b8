"""Finds and verifies checkpoints, and fills shards of any layout from them."""

import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

from megagpt.checkpoint.best import BEST, find_best
from megagpt.checkpoint.files import CHUNK, JSON_LIMIT, check_file, open_regular, parse_json, read_bytes
from megagpt.checkpoint.format import STATE, STEP, Checkpoint, ShardLocation, memory, rank_file
from megagpt.checkpoint.geometry import Rectangle, intersection, rectangles
from megagpt.checkpoint.world import World, current_world
from megagpt.errors import CheckpointError
from megagpt.parallel.shards import Shape, Shard

log = logging.getLogger(__name__)

LATEST = "latest"
NAMES_SHOWN = 10
HASH_THREADS = 4


def verify(path: Path, world: World) -> Checkpoint:
    """Opens a checkpoint folder and checks the SHA-256 of its files; the ranks divide the files among them.

    Collective. Raises: CheckpointError on all ranks, naming the file, when anything in the folder has changed.
    """
    with world.raise_on_all_ranks():
        checkpoint = Checkpoint.open(path)
        largest_first = sorted(checkpoint.files().items(), key=lambda item: (-item[1].size, item[0]))
        mine = list(islice(largest_first, world.rank, None, world.size))
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            list(pool.map(lambda item: check_file(path / item[0], item[1]), mine))
    return checkpoint


def find_newest(directory: Path, world: World | None = None) -> Path | None:
    """The checkpoint that `latest` names or, if it is not valid, the newest valid one.

    Collective. Every refused candidate is logged at ERROR with the file and the reason.

    Returns: the checkpoint's folder, verified; None when the directory has no checkpoint at all.
    Raises: CheckpointError when there are checkpoints but none is valid.
    """
    found, _ = search(directory, world or current_world())
    return found.path if found else None


def search(directory: Path, world: World, at_most: int | None = None) -> tuple[Checkpoint | None, set[str]]:
    """Like `find_newest`, but returns the opened checkpoint and the names of refused ones.

    at_most: largest step to consider; None for no limit.
    """
    with world.raise_on_all_ranks():
        listed = list_steps(directory) if world.rank == 0 else None
    candidates, complaints = world.broadcast(listed)
    refused: set[str] = set()
    if at_most is not None:
        candidates = [name for name in candidates if int(STEP.fullmatch(name)[1]) <= at_most]
    for name in candidates:
        try:
            return verify(directory / name, world), refused
        except CheckpointError as error:
            complaints.append(str(error))
            refused.add(name)
            if world.rank == 0:
                log.error("refused the checkpoint %s: %s", name, error)
    if complaints:
        raise CheckpointError(
            f"no checkpoint in {directory} is valid: {'; '.join(complaints)}. "
            f"Restore one, or move the folder away to start from the beginning"
        )
    return None, refused


def list_steps(directory: Path) -> tuple[list[str], list[str]]:
    """Names of a directory's checkpoints, and complaints about the file `latest`.

    The checkpoint that `latest` names comes first; the others follow, newest first.
    """
    names = sorted((path.name for path in directory.glob("step_*") if STEP.fullmatch(path.name)), reverse=True)
    names.sort(key=lambda name: -int(STEP.fullmatch(name)[1]))
    latest = directory / LATEST
    if not latest.exists() and not latest.is_symlink():
        return names, []
    try:
        pointed = read_bytes(latest, limit=64).decode(errors="replace").strip()
        if not STEP.fullmatch(pointed):
            raise CheckpointError(f"{latest} holds {pointed!r}, which is not a checkpoint's name")
        if pointed not in names:
            raise CheckpointError(f"{latest} names {pointed}, which does not exist")
    except CheckpointError as error:
        log.error("%s", error)
        return names, [str(error)]
    return [pointed, *(name for name in names if name != pointed)], []


def find(path: Path, world: World | None = None) -> Path:
    """The checkpoint for `path`: a checkpoint, a file `latest` or `best`, a run folder, or its folder checkpoints.

    For a run it is the best checkpoint if the run chose one, else the newest valid one. If the best one is not valid,
    an ERROR is logged and the newest is taken.

    Collective. Raises: CheckpointError when there is none.
    """
    if (named := _named(path)) is not None:
        return named
    directory = _directory_of(path)
    if best := _valid_best(directory, world or current_world()):
        return best
    found = find_newest(directory, world)
    if found is None:
        raise CheckpointError(f"{directory} has no checkpoint")
    return found


def first_choice(path: Path) -> Path | None:
    """The checkpoint that `find` tries first, not verified; None when there is none. Not collective.

    Raises: CheckpointError if `path` is a file `latest` or `best` that names no checkpoint.
    """
    if (named := _named(path)) is not None:
        return named if named.is_dir() else None
    directory = _directory_of(path)
    if best := find_best(directory):
        return best
    names, _ = list_steps(directory)
    return directory / names[0] if names else None


def _named(path: Path) -> Path | None:
    """`path` if it is a checkpoint, the one it names if it is a file `latest` or `best`, else None."""
    if path.name in (LATEST, BEST) and path.is_file():
        named = read_bytes(path, limit=64).decode(errors="replace").strip()
        if not STEP.fullmatch(named):
            raise CheckpointError(f"{path} holds {named!r}, which is not a checkpoint's name")
        return path.with_name(named)
    return path if STEP.fullmatch(path.name) else None


def _directory_of(path: Path) -> Path:
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def _valid_best(directory: Path, world: World) -> Path | None:
    best = find_best(directory) if world.rank == 0 else None
    name = world.broadcast(None if best is None else best.name)
    if name is None:
        return None
    try:
        return verify(directory / name, world).path
    except CheckpointError as error:
        if world.rank == 0:
            log.error("refused the best checkpoint %s: %s", name, error)
        return None


def load(
    path: Path, shards: Iterable[Shard], strict: bool = True, cast: bool = False, world: World | None = None
) -> dict[str, Any]:
    """Verifies the checkpoint folder `path`, fills every shard's data in place, and returns the saved state.

    Collective. The shards may have any layout. See `fill` for `strict`, `cast` and the errors.
    """
    world = world or current_world()
    return fill(verify(path, world), shards, strict, cast, world)


def fill(checkpoint: Checkpoint, shards: Iterable[Shard], strict: bool, cast: bool, world: World) -> dict[str, Any]:
    """Fills every shard's data in place from a verified checkpoint, bit for bit, and returns the saved state.

    Collective. It needs memory for a few CHUNKs in addition to the shards.

    Args:
        checkpoint: result of `verify`.
        shards: the shards that this rank needs.
        strict: whether a saved tensor that no rank needs is an error.
        cast: whether floating-point data may be converted to another floating-point dtype.
        world: the ranks that load.

    Raises: CheckpointError on all ranks, with the tensors that are missing, unexpected, or have another shape or dtype.
    """
    wanted = list(shards)
    names = {name for part in world.gather(sorted({shard.name for shard in wanted})) for name in part}
    with world.raise_on_all_ranks():
        problems = [flaw for shard in wanted if (flaw := _mismatch(checkpoint, shard, cast))]
        if strict:
            problems += [f"{name} is not expected" for name in sorted(set(checkpoint.tensors) - names)]
        if problems:
            more = f"; and {len(problems) - NAMES_SHOWN} more" if len(problems) > NAMES_SHOWN else ""
            raise CheckpointError(f"{checkpoint.path} does not fit: {'; '.join(problems[:NAMES_SHOWN])}{more}")
        _copy_all(checkpoint, wanted)
        file = checkpoint.path / STATE
        state = parse_json(read_bytes(file, JSON_LIMIT), file)
    return state


def _mismatch(checkpoint: Checkpoint, shard: Shard, cast: bool) -> str | None:
    """The reason why a shard cannot be filled; None when it can."""
    stored = checkpoint.tensors.get(shard.name)
    if stored is None:
        return f"{shard.name} is missing"
    entry = stored[0].entry
    if entry.global_shape != tuple(shard.global_shape):
        return f"{shard.name} has shape {list(entry.global_shape)}, not {list(shard.global_shape)}"
    if flaw := shard.flaw():
        return f"{shard.name}: {flaw}"
    dtypes = (entry.torch_dtype, shard.data.dtype)
    if dtypes[0] != dtypes[1] and not (cast and all(dtype.is_floating_point for dtype in dtypes)):
        return f"{shard.name} is {entry.torch_dtype}, not {shard.data.dtype}"
    return None


def _copy_all(checkpoint: Checkpoint, wanted: Collection[Shard]) -> None:
    """Fills shards, which must fit, file by file in the order of the files' data."""
    pairs = ((stored, shard) for shard in wanted for stored in checkpoint.tensors[shard.name])
    plan: dict[str, list[tuple[ShardLocation, Shard]]] = {}
    for stored, shard in pairs:
        if _boxes_meet(stored, shard):
            plan.setdefault(stored.file, []).append((stored, shard))
    for name, jobs in sorted(plan.items()):
        jobs.sort(key=lambda job: job[0].position)
        with open_regular(checkpoint.path / name) as file:
            for stored, shard in jobs:
                try:
                    _copy(file, stored, shard)
                except OSError as error:
                    where = f"{shard.name} from {checkpoint.path / name}"
                    raise CheckpointError(f"cannot read {where}: {error.strerror or error}") from error


def _boxes_meet(stored: ShardLocation, shard: Shard) -> bool:
    """Whether the boxes of a stored and a wanted shard overlap; a fast test before comparing their rectangles."""
    a, b = (Rectangle(0, place.offset, place.shape) for place in (stored.entry, shard))
    return intersection(a, b) is not None


def _copy(file: BinaryIO, stored: ShardLocation, shard: Shard) -> None:
    """Copies the elements that a stored shard and a wanted shard share."""
    data, dtype = shard.data.detach(), stored.entry.torch_dtype
    for target in rectangles(shard):
        whole = target.shape == shard.data_shape
        view = data if whole else data.view(-1)[target.start :][: prod(target.shape)].view(target.shape)
        for source in rectangles(stored.entry):
            if shared := intersection(source, target):
                offset, size = shared
                inside = tuple(slice(o - t, o - t + n) for o, t, n in zip(offset, target.offset, size, strict=True))
                first = tuple(o - s for o, s in zip(offset, source.offset, strict=True))
                start = stored.position + source.start * dtype.itemsize
                _StoredArray(file, start, source.shape, dtype).read_box(first, view[inside])


@dataclass(frozen=True)
class _StoredArray:
    """A row-major array in an open file."""

    file: BinaryIO
    start: int
    """Byte at which it begins in the file."""
    shape: Shape
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def row(self, index: int) -> Self:
        """The sub-array at `index` of the first axis."""
        return replace(self, start=self.start + index * self.row_bytes, shape=self.shape[1:])

    def read_box(self, first: Shape, target: torch.Tensor) -> None:
        """Fills `target` with the box at index `first` that has the target's shape. Raises OSError."""
        if not self.shape:
            replace(self, shape=(1,)).read_box((0,), target.view(1))
        elif self._holds_rows_of(target):
            _read_into(self.file, self.row(first[0]).start, target)
        elif self.row_bytes > CHUNK:
            for index in range(len(target)):
                self.row(first[0] + index).read_box(first[1:], target[index])
        else:
            self._read_through_memory(first, target)

    def _holds_rows_of(self, target: torch.Tensor) -> bool:
        """Whether `target` needs whole rows without conversion, so that the file can be read directly into it."""
        same_bytes = target.dtype == self.dtype and target.device.type == "cpu" and target.is_contiguous()
        return same_bytes and target.shape[1:] == self.shape[1:]

    def _read_through_memory(self, first: Shape, target: torch.Tensor) -> None:
        """Reads whole rows, about a CHUNK at a time, and copies the wanted columns."""
        columns = tuple(slice(f, f + n) for f, n in zip(first[1:], target.shape[1:], strict=True))
        step = max(1, CHUNK // self.row_bytes)
        scratch = torch.empty(min(step, len(target)), *self.shape[1:], dtype=self.dtype)
        for index in range(0, len(target), step):
            rows = scratch[: len(target) - index]
            _read_into(self.file, self.row(first[0] + index).start, rows)
            target[index : index + step].copy_(rows[:, *columns] if columns else rows)


def _read_into(file: BinaryIO, start: int, target: torch.Tensor) -> None:
    """Fills a contiguous CPU tensor with the bytes of a file from byte `start`. Raises OSError."""
    buffer = memory(target)
    file.seek(start)
    while buffer:
        count = file.readinto(buffer)
        if not count:
            raise OSError("the file ends early")
        buffer = buffer[count:]


def rank_tensors(checkpoint: Checkpoint, rank: int) -> dict[str, torch.Tensor]:
    """The rank tensors that `rank` saved, on the CPU; {} when it saved none. Raises CheckpointError."""
    name, tensors = rank_file(rank), {}
    stored_tensors = checkpoint.private.get(name, [])
    if not stored_tensors:
        return {}
    with open_regular(checkpoint.path / name) as file:
        for stored in stored_tensors:
            tensors[stored.entry.name] = torch.empty(stored.entry.shape, dtype=stored.entry.torch_dtype)
            _read_into(file, stored.position, tensors[stored.entry.name])
    return tensors
