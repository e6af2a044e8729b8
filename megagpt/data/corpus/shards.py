"""Read and write shards: documents in jsonl files, compressed or not, written atomically."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from megagpt.data.files import atomic_file


def shard_name(rank: int, compression: str = "zst") -> str:
    """File name of shard number `rank`; compression is zst, gz or none."""
    return f"{rank:05d}.jsonl" + ("" if compression == "none" else f".{compression}")


def write_shard(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Write `documents` to `path`, one per line. The suffix of the name (.zst, .gz, other) decides the compression.

    The same documents give the same bytes. Raises DataError when the file cannot be written.
    """
    with atomic_file(path) as raw:
        if path.suffix == ".zst":
            file = zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
        elif path.suffix == ".gz":
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
        else:
            file = raw
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        if file is not raw:
            file.close()


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of a .zst shard."""
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)
