"""Embeds many texts in blocks, so that interrupted work can continue, and writes the vectors to one file.

Finished blocks are in a folder of parts, with job.json, which holds everything that the vectors depend on. All ranks
embed; only the first reads and writes the folder.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megagpt import errors
from megagpt.checkpoint import World
from megagpt.data.files import atomic_file, file_sha256, locked, write_atomic
from megagpt.data.readers import Source
from megagpt.data.text_batch import Side
from megagpt.data.texts import Text, count_texts, read_texts
from megagpt.errors import CheckpointError, ConfigError, DataError, MegaGPTError
from megagpt.log import progress

log = logging.getLogger(__name__)

BLOCK_TEXTS = 4096
"""Number of texts per block; an interruption loses at most one block."""


class Embeds(Protocol):
    """Interface of an embedder; see `megagpt.evaluate.embedder.Embedder`."""

    size: int
    """Numbers per vector."""

    def vectors(self, texts: Sequence[str], side: Side, label: str = "") -> tuple[np.ndarray, int]:
        """Vectors of any norm, float32 [n, size], the same on every rank, and the number of texts that were cut."""


@dataclass(frozen=True)
class Job:
    """Everything that a file of vectors depends on."""

    inputs: list[dict[str, str]]
    """Path and SHA-256 of every input, in order."""
    key: str
    """Field of the inputs' records that holds the text."""
    checkpoint: dict[str, str]
    """Folder of the checkpoint, and the SHA-256 of its manifest."""
    side: Side
    dimensions: int | None
    """Numbers per vector; None for the model's."""
    with_text: bool = False
    """Whether the file also has the texts."""
    block_texts: int = BLOCK_TEXTS


def describe_checkpoint(folder: Path) -> dict[str, str]:
    """The identity of a checkpoint: folder and hash of the manifest. Raises CheckpointError without a manifest."""
    try:
        return {"folder": str(folder), "manifest_sha256": file_sha256(folder / "manifest.json")}
    except DataError as error:
        raise CheckpointError(f"{folder} is not a checkpoint: {error}") from None


def first_rank_does(world: World, action: Callable[[], Any]) -> Any:
    """The result of `action()` on the first rank, a JSON value, on every rank. Raises its MegaGPTError on all ranks."""
    answer: dict[str, Any] = {}
    if world.rank == 0:
        try:
            answer = {"value": action()}
        except MegaGPTError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
    answer = world.broadcast(answer)
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer["value"]


def make_vectors(
    sources: Sequence[Source],
    checkpoint: Path,
    load: Callable[[Path], Embeds],
    publish: Callable[[list[Path], dict[str, Any]], None],
    *,
    output: Path,
    about: Path,
    world: World,
    key: str = "text",
    side: Side = "document",
    dimensions: int | None = None,
    with_text: bool = False,
) -> dict[str, Any]:
    """Embed the texts of `sources`, publish the vectors, and return the content of the file `about`. Collective.

    load: function that loads the embedder of `checkpoint`; called only if needed. publish: called on the first rank
    with the files of all blocks (.npy, float32 [n, D] each) and the content of `about`, to write `output`. output:
    finished blocks are in the folder OUTPUT.parts; the same call continues after them. about: file that marks finished
    work, written last; if both files exist and belong to the same job, nothing is done. key: field of the records that
    holds the text. with_text: whether the output also has the texts.

    Raises ConfigError when existing files belong to another input, checkpoint or setting; DataError for a bad record.
    """
    parts = output.with_name(f"{output.name}.parts")

    def prepare() -> dict[str, Any]:
        inputs = [{"path": source.path, "sha256": file_sha256(Path(source.path))} for source in sources]
        job = asdict(Job(inputs, key, describe_checkpoint(checkpoint), side, dimensions, with_text))
        finished = None
        if any(parts.glob("*.npy")):
            _claim(parts / "job.json", job, "unfinished work")
        elif output.exists():
            finished = _claim(about, job, "vectors")
            if finished is None:
                raise ConfigError(f"{output} exists without {about.name}, which describes it: choose another output")
        return {"job": job, "finished": finished, "count": 0 if finished else count_texts(sources, key)}

    with ExitStack() as stack:
        prepared = first_rank_does(world, prepare)
        if prepared["finished"]:
            log.info("%s is already made from these inputs", output)
            return prepared["finished"]

        def begin() -> None:
            stack.enter_context(locked(parts))
            write_atomic(parts / "job.json", json.dumps({"job": prepared["job"]}, indent=2).encode())

        embedder = load(checkpoint)
        size = dimensions or embedder.size
        if size > embedder.size:
            raise ConfigError(f"--dimensions is {size}, but the model of {checkpoint} has {embedder.size}")
        first_rank_does(world, begin)
        paths = _embed_blocks(sources, prepared, embedder, size, parts, world)
        result = {"count": prepared["count"], "dimensions": size, "truncated": 0, "job": prepared["job"]}

        def finish() -> dict[str, Any]:
            result["truncated"] = sum(json.loads(path.with_suffix(".json").read_bytes()) for path in paths)
            if result["truncated"]:
                log.warning("%(truncated)d of %(count)d texts are too long for the model and lose their ends", result)
            publish(paths, result)
            write_atomic(about, json.dumps(result, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))
            shutil.rmtree(parts)
            return result

        return first_rank_does(world, finish)


def _embed_blocks(
    sources: Sequence[Source], prepared: dict[str, Any], embedder: Embeds, size: int, parts: Path, world: World
) -> list[Path]:
    """Embed the blocks that are missing in `parts`, and return the files of all blocks."""
    job, count = prepared["job"], prepared["count"]
    sizes = [min(BLOCK_TEXTS, count - first) for first in range(0, count, BLOCK_TEXTS)]
    paths = [parts / f"{number:06}.npy" for number in range(len(sizes))]
    done = first_rank_does(
        world, lambda: [_is_block(path, (rows, size)) for path, rows in zip(paths, sizes, strict=True)]
    )
    finished = sum(rows for rows, is_done in zip(sizes, done, strict=True) if is_done)
    if finished:
        log.info("%d of %d texts are embedded already", finished, count)
    texts = read_texts(sources, job["key"])
    with progress(count, "texts", "embedding", initial=finished) as bar:
        for number, (path, rows, is_done) in enumerate(zip(paths, sizes, done, strict=True), 1):
            block = [one.text for one in islice(texts, rows)]
            if len(block) < rows:
                raise DataError(f"{sources[-1].path} became shorter while it was read: run the command again")
            if is_done:
                continue
            label = f"block {number} of {len(paths)}" if len(paths) > 1 else "embedding"
            vectors, truncated = embedder.vectors(block, job["side"], label)
            vectors = vectors[:, :size]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            if not np.isfinite(vectors).all():
                raise CheckpointError(
                    f"{job['checkpoint']['folder']} computes vectors that are not finite: use an earlier checkpoint"
                )
            first_rank_does(world, lambda path=path, rows=vectors, cut=truncated: _write_block(path, rows, cut))
            bar.update(rows)
    return paths


def _claim(path: Path, wanted: dict[str, Any], what: str) -> dict[str, Any] | None:
    """The content of `path` if it belongs to the job `wanted`, None without a file. Raises ConfigError otherwise."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        differences = _differences(found["job"], wanted)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}): remove {path.parent}, or choose another output") from None
    if differences:
        raise ConfigError(
            f"{path} belongs to {what} of another job: {'; '.join(differences)}. Use the earlier settings, remove the "
            "existing files, or choose another output"
        )
    return found


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Sentences about the differences between two jobs."""
    found = []
    if [one["sha256"] for one in before["inputs"]] != [one["sha256"] for one in now["inputs"]]:
        hashes = {one["path"]: one["sha256"] for one in before["inputs"]}
        changed = [one["path"] for one in now["inputs"] if hashes.get(one["path"], one["sha256"]) != one["sha256"]]
        names = [", ".join(one["path"] for one in job["inputs"]) for job in (now, before)]
        found.append(f"{', '.join(changed)} has changed" if changed else f"the input is {names[0]}, not {names[1]}")
    if before["checkpoint"]["manifest_sha256"] != now["checkpoint"]["manifest_sha256"]:
        old, new = before["checkpoint"]["folder"], now["checkpoint"]["folder"]
        found.append(f"the checkpoint {new} has changed" if old == new else f"the checkpoint is {new}, not {old}")
    for name in ("key", "side", "dimensions", "with_text", "block_texts"):
        if before[name] != now[name]:
            values = ["the model's" if job[name] is None else job[name] for job in (now, before)]
            found.append(f"{name} is {values[0]}, not {values[1]}")
    return found


def _is_block(path: Path, shape: tuple[int, int]) -> bool:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.float32


def _write_block(path: Path, vectors: np.ndarray, truncated: int) -> None:
    write_atomic(path.with_suffix(".json"), json.dumps(truncated).encode())
    with atomic_file(path) as file:
        np.save(file, np.ascontiguousarray(vectors, np.float32))


# Formats


def write_npy(path: Path, blocks: Sequence[Path], count: int, size: int) -> None:
    """Join blocks into one .npy file, float32 [count, size], which `numpy.load(..., mmap_mode="r")` can map."""
    with atomic_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.load(block).astype("<f4").data)


def write_parquet(path: Path, blocks: Sequence[Path], texts: Iterator[Text], size: int, with_text: bool) -> None:
    """Write columns id (string), text if `with_text`, and vector (a list of `size` float32), one row group per block.

    Raises ConfigError without pyarrow.
    """
    pa, pq = import_pyarrow()
    columns = [("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), size))]
    schema = pa.schema([column for column in columns if with_text or column[0] != "text"])
    with atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        for rows, vectors in _with_texts(blocks, texts):
            ids, contents = [one_id for one_id, _ in rows], [text for _, text in rows]
            flat = pa.array(vectors.reshape(-1))
            data = [ids, *([contents] if with_text else []), pa.FixedSizeListArray.from_arrays(flat, size)]
            writer.write_table(pa.table(data, schema=schema))


def write_jsonl(path: Path, blocks: Sequence[Path], texts: Iterator[Text], with_text: bool) -> None:
    """Write lines {"id": ..., "text": ... (if `with_text`), "vector": [...]}; the digits determine each float32."""
    with atomic_file(path) as file:
        for rows, vectors in _with_texts(blocks, texts):
            for (one_id, text), vector in zip(rows, vectors, strict=True):
                record = {"id": one_id} | ({"text": text} if with_text else {})
                numbers = ",".join(map(str, vector))  # the fewest digits that determine each float32
                head = json.dumps(record, ensure_ascii=False)[:-1]
                file.write(f'{head}, "vector": [{numbers}]}}\n'.encode(errors="backslashreplace"))


def _with_texts(blocks: Sequence[Path], texts: Iterator[Text]) -> Iterator[tuple[list[tuple[str, str]], np.ndarray]]:
    """For every block, (id, text) of its rows, and its vectors. An id is the record's "id" or "_id", or its number."""
    number = 0
    for block in blocks:
        vectors = np.load(block)
        rows = []
        for one in islice(texts, len(vectors)):
            rows.append((str(one.record.get("id", one.record.get("_id", number))), one.text))
            number += 1
        yield rows, vectors


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its module for parquet files. Raises ConfigError when it is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError('a .parquet file needs pyarrow: pip install "megagpt[corpora]"') from None
    return pa, pq
