"""Tokenize files of text into a corpus, with many processes, bounded memory, and resumption after an interruption.

One process reads chunks; workers tokenize each chunk and write it atomically to a part file under PREFIX.parts/. At the
end the parts are joined into PREFIX.bin, .idx and .json (megagpt.data.indexed). A rerun continues after the existing
parts; its result is byte for byte the result of an uninterrupted run.
"""

import json
import logging
import multiprocessing
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megagpt import env
from megagpt.data import indexed
from megagpt.data.engines import Encoder, Engine, EngineName, choose_engine, make_encoder
from megagpt.data.files import locked, write_atomic
from megagpt.data.readers import (
    FOLDER_PATTERNS,
    Chunk,
    Position,
    Rejection,
    Source,
    chunks,
    documents,
    find_sources,
)
from megagpt.data.tokenizer import END_OF_TEXT, Tokenizer
from megagpt.data.unread import log_unread, most_common
from megagpt.data.workers import start_worker
from megagpt.errors import DataError
from megagpt.log import progress

log = logging.getLogger(__name__)

MAX_RECORD_MB = 32
"""Default length limit of a record, in millions of bytes."""

_BATCH_CHARACTERS = 1 << 19
"""Characters that are tokenized at a time; the library's intermediate results are many times as large."""

_FIELDS = 100
"""Number of unread fields that are counted, the most frequent first. Some files use data as keys, so there may be very
many."""

_SHOWN = 10
"""Number of rejected records that are logged; PREFIX.rejected.txt lists all."""


@dataclass(frozen=True)
class _Job:
    """Settings that a worker needs besides its chunk."""

    folder: Path
    tokenizer: str
    engine: Engine
    key: str
    limit: int
    max_rejected: int


@dataclass(frozen=True)
class _Part:
    """The result of one chunk: the first line of its part file."""

    documents: int
    tokens: int
    bytes: int
    stored_bytes: int
    end: Position
    rejected: list[Rejection]
    unread: dict[str, int] = field(default_factory=dict)
    """Fields that no code reads, and the number of records that have each."""


def preprocess(
    inputs: Sequence[str | Path],
    tokenizer: str | Path,
    output: str | Path,
    *,
    key: str = "text",
    patterns: Sequence[str] = FOLDER_PATTERNS,
    workers: int | None = None,
    max_rejected: int = 0,
    max_record_mb: float = MAX_RECORD_MB,
    engine: EngineName | None = None,
) -> dict[str, Any]:
    """Tokenize `inputs` (see readers.find_sources) into the corpus `output`.bin, .idx, .json.

    tokenizer: path of a tokenizer.json
    key: key of the text in JSON records, or its column in parquet files
    workers: number of tokenizing processes, by default one per core
    max_rejected: limit of malformed records; `output`.rejected.txt lists all
    max_record_mb: longer records are malformed; a worker needs about 20 times the record's size in memory
    engine: the library that tokenizes, by default the faster one that gives the tokenizer's ids

    Returns the content of the .json. Other fields of the records are counted and logged once, and stand in the .json as
    `unread`. A corpus that was made from the same inputs with the same options is left unchanged.

    Raises DataError when an input cannot be read, too many records are malformed, there is no document, or another
    process is making the corpus; ConfigError when `engine` cannot be used.
    """
    sources = find_sources(inputs, patterns)
    known = Tokenizer.load(tokenizer)
    if Path(tokenizer).resolve() == indexed.corpus_files(output)[2].resolve():
        raise DataError(f"the corpus {output} would overwrite its tokenizer {tokenizer}: give it another --output")
    about = {
        "tokenizer_sha256": known.sha256,
        "vocab_size": known.vocab_size,
        "key": key,
        "max_record_mb": max_record_mb,
        "sources": [{"path": source.path, "bytes": source.bytes} for source in sources],
    }
    if around := _around(known):
        about["around_documents"] = around
    if _is_made(output, about, sources, max_rejected):
        log.info("%s is already made from these inputs", output)
        return indexed.read_about(output)
    folder = Path(f"{output}.parts")
    job = _Job(folder, str(tokenizer), choose_engine(known, engine), key, int(max_record_mb * 1e6), max_rejected)
    with locked(folder):
        _forget_other_work(job, about, sources)
        parts = _run(job, sources, workers or len(os.sched_getaffinity(0)), known)
        total = _publish(output, folder, parts, about, known)
        shutil.rmtree(folder)
    log_unread(f"{output} (of its inputs only --key {key} is read)", total["unread"])
    log.info("%s: %d documents, %d tokens, %d bytes of text", output, *map(total.get, ("documents", "tokens", "bytes")))
    return total


def _around(known: Tokenizer) -> list[list[int]]:
    """Token ids before and after every document; empty for MegaGPT's own tokenizers, which add only end-of-text."""
    usual = not known.start_ids and known.end_of_text == END_OF_TEXT
    return [] if usual else [known.start_ids, [known.end_of_text_id]]


def _is_made(output: str | Path, about: dict[str, Any], sources: list[Source], max_rejected: int) -> bool:
    json_path = indexed.corpus_files(output)[2]
    if not json_path.exists():
        return False
    try:
        made = indexed.check_corpus(output)
    except DataError as error:
        log.warning("%s", error)
        return False
    changed = [name for name, value in about.items() if made.get(name) != value]
    if not changed and json_path.stat().st_mtime < max(Path(source.path).stat().st_mtime for source in sources):
        changed = ["sources"]
    if changed:
        log.warning("%s was made with other %s: making it anew", output, " and ".join(changed))
    return not changed and sum(made["rejected"].values()) <= max_rejected


def _forget_other_work(job: _Job, about: dict[str, Any], sources: list[Source]) -> None:
    """Remove the files of an interrupted run with other inputs or options from the folder, and log it."""
    folder = job.folder
    path = folder / "job.json"
    changes = [Path(source.path).stat().st_mtime_ns for source in sources]
    now = about | {"sources changed": changes, "library": " ".join(job.engine)}
    try:
        old = json.loads(path.read_bytes())
    except (OSError, ValueError):
        old = {}
    if old == now:
        return
    if old:
        changed = " and ".join(name for name in now if now[name] != old.get(name))
        log.warning("%s is of an interrupted run with other %s: starting anew", folder, changed)
    for file in folder.iterdir():
        if file.name != "lock":
            file.unlink()
    write_atomic(path, json.dumps(now).encode())


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}.part"


def _finished_parts(folder: Path, known: Tokenizer) -> list[_Part]:
    """The parts of an interrupted run, up to the first missing or truncated one."""
    parts: list[_Part] = []
    itemsize = indexed.token_dtype(known.vocab_size).itemsize
    while (path := _part_path(folder, len(parts))).exists():
        with path.open("rb") as file:
            part = _parse(file.readline())
            if path.stat().st_size != file.tell() + 4 * part.documents + itemsize * part.tokens:
                break
        parts.append(part)
    return parts


def _parse(line: bytes) -> _Part:
    values = json.loads(line)
    rejected = [Rejection(*item) for item in values["rejected"]]
    return _Part(**values | {"end": Position(*values["end"]), "rejected": rejected})


def _run(job: _Job, sources: list[Source], workers: int, known: Tokenizer) -> int:
    """Make all missing parts, and return the number of all parts. Raises DataError."""
    finished = _finished_parts(job.folder, known)
    start = finished[-1].end if finished else Position()
    done = sum(part.stored_bytes for part in finished)
    if finished:
        log.info("going on after %d MB that an interrupted run has tokenized", done // 10**6)
    rejected: list[Rejection] = []
    for part in finished:
        _reject(rejected, part.rejected, job.max_rejected)
    count, tokens, began = len(finished), 0, time.monotonic()
    with progress(sum(source.bytes for source in sources), "B", "tokenizing", initial=done) as bar:
        for part in _tokenize_all(job, sources, start, count, workers):
            _reject(rejected, part.rejected, job.max_rejected)
            count, tokens = count + 1, tokens + part.tokens
            bar.set_postfix({"tokens/s": f"{tokens / (time.monotonic() - began):,.0f}"}, refresh=False)
            bar.update(part.stored_bytes)
    if rejected:
        log.warning("%d records rejected: %s", len(rejected), _kinds(rejected))
    return count


def _reject(rejected: list[Rejection], more: list[Rejection], max_rejected: int) -> None:
    for rejection in more[: max(0, _SHOWN - len(rejected))]:
        log.warning("rejected %s", rejection)
    rejected += more
    if len(rejected) > max_rejected:
        raise DataError(
            f"{len(rejected)} malformed records so far, and --max-rejected is {max_rejected}: {_kinds(rejected)}; "
            f"the first is {rejected[0]}. Correct the input, or allow for more; finished parts are kept"
        )


def _kinds(rejected: list[Rejection]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(item.kind for item in rejected).most_common())


def _tokenize_all(job: _Job, sources: list[Source], start: Position, number: int, workers: int) -> Iterator[_Part]:
    """Parts `number` and following, from `start` in `sources` on, in order."""
    env.tokenize_on_one_thread()  # one process per core is enough; threads would compete for the cores
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        waiting: deque[Future[_Part]] = deque()
        try:
            for chunk in chunks(sources, job.key, job.limit, start):
                waiting.append(pool.submit(_tokenize, job, number + len(waiting), chunk))
                if len(waiting) == 2 * workers:  # reading stays this far ahead of tokenizing, so memory is bounded
                    yield waiting.popleft().result()
                    number += 1
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps because memory ran out: run the command again with fewer "
                "--workers or a smaller --max-record-mb, and it goes on from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=1)
def _load(path: str, engine: Engine) -> tuple[Tokenizer, Encoder]:
    tokenizer = Tokenizer.load(path)
    return tokenizer, make_encoder(tokenizer, engine)


def _tokenize(job: _Job, number: int, chunk: Chunk) -> _Part:
    """Write part `number` from `chunk`, unless it has too many malformed records."""
    tokenizer, encode = _load(job.tokenizer, job.engine)
    dtype = indexed.token_dtype(tokenizer.vocab_size)
    rejected: list[Rejection] = []
    encoded: list[np.ndarray] = []
    unread: Counter[str] = Counter()
    size = 0
    for texts in _batches(chunk, job, rejected, unread):
        size += sum(len(text.encode()) for text in texts)
        encoded += [ids.astype(dtype) for ids in encode(texts)]
    start = np.array(tokenizer.start_ids, dtype).data
    lengths = np.array([len(start) + len(ids) + 1 for ids in encoded], "<i4")
    part = _Part(
        len(encoded), int(lengths.sum()), size, chunk.stored_bytes, chunk.end, rejected, most_common(unread, _FIELDS)
    )
    if len(rejected) <= job.max_rejected:
        header = json.dumps(asdict(part)).encode() + b"\n"
        end = np.array([tokenizer.end_of_text_id], dtype).data
        tokens = [piece for ids in encoded for piece in (start, ids.data, end)]
        write_atomic(_part_path(job.folder, number), header, lengths.data, *tokens)
    return part


def _batches(chunk: Chunk, job: _Job, rejected: list[Rejection], unread: Counter[str]) -> Iterator[list[str]]:
    """The texts of `chunk` in lists. Malformed records go to `rejected`; stops when there are too many.

    unread: receives the counts of fields that no code reads
    """
    texts, size = [], 0
    for item in chunk.items:
        for text in documents(item, job.key, job.limit, unread):
            if isinstance(text, Rejection):
                rejected.append(text)
                if len(rejected) > job.max_rejected:
                    return
                continue
            texts.append(text)
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield texts
                texts, size = [], 0
    yield texts


def _publish(output: str | Path, folder: Path, count: int, about: dict[str, Any], known: Tokenizer) -> dict[str, Any]:
    """Join `count` parts into the corpus, and return the content of its .json."""
    parts = _finished_parts(folder, known)
    if len(parts) != count:
        raise DataError(f"{_part_path(folder, len(parts))} is gone: run the command again")
    rejected = [item for part in parts for item in part.rejected]
    total = {name: sum(getattr(part, name) for part in parts) for name in ("documents", "bytes")}
    if not total["documents"]:
        raise DataError("the inputs hold no document")
    listing = Path(f"{output}.rejected.txt")
    listing.unlink(missing_ok=True)
    if rejected:
        write_atomic(listing, "".join(f"{item}\n" for item in rejected).encode(errors="backslashreplace"))
    kinds = dict(sorted(Counter(item.kind for item in rejected).items()))
    unread: Counter[str] = Counter()
    for part in parts:
        unread.update(part.unread)
    indexed.write_corpus(
        output,
        (_read_part(_part_path(folder, number), known) for number in range(count)),
        total["documents"],
        about | {"bytes": total["bytes"], "rejected": kinds, "unread": most_common(unread, _FIELDS)},
    )
    return indexed.read_about(output)


def _read_part(path: Path, known: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        part = _parse(file.readline())
        lengths = np.frombuffer(file.read(4 * part.documents), "<i4")
        return lengths, np.frombuffer(file.read(), indexed.token_dtype(known.vocab_size))
