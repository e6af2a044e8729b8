"""Tokenized corpora on disk: Megatron's `.bin` and `.idx`, and a `.json` that describes them.

    PREFIX.bin   the tokens of all documents, each ending with end-of-text; uint16 where the vocabulary fits, else int32
    PREFIX.idx   length and position of every document; megatron.core's IndexedDataset reads both files
    PREFIX.json  tokenizer_sha256, vocab_size, documents, tokens, max_token, bin_sha256, idx_sha256, bytes, sources ...

A corpus is complete if it has its .json, which is written last.
"""

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.files import atomic_file, file_sha256, file_size, open_input, read_input, write_atomic
from megagpt.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the dtype, sequences, sequences + 1
_DTYPES = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_NUMBERS = ("vocab_size", "documents", "tokens", "max_token")
_LARGEST_UINT16_VOCABULARY = 65_499  # Megatron-Core's own limit


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of stored tokens: uint16 if the vocabulary fits, else int32."""
    return np.dtype("<u2") if vocab_size <= _LARGEST_UINT16_VOCABULARY else np.dtype("<i4")


def corpus_files(prefix: str | Path) -> tuple[Path, Path, Path]:
    """Paths of the .bin, .idx and .json of the corpus at `prefix`."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx"), Path(f"{prefix}.json")


def write_corpus(
    prefix: str | Path,
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    documents: int,
    about: dict[str, Any],
) -> None:
    """Write a corpus part by part, so that only one part is in memory.

    parts: (int32 [n] lengths of n documents, [sum of lengths] their tokens), in order
    documents: number of documents of all parts
    about: content of the .json, with at least `tokenizer_sha256` and `vocab_size`. The numbers of documents and
        tokens, the largest token and the hashes of the two files are added.

    Raises DataError when a file cannot be written.
    """
    bin_path, idx_path, json_path = corpus_files(prefix)
    dtype = token_dtype(about["vocab_size"])
    json_path.unlink(missing_ok=True)  # from here until the end there is no whole corpus
    start, tokens, max_token, digest = 0, 0, 0, hashlib.sha256()
    with atomic_file(idx_path) as index, atomic_file(bin_path) as binary:
        lengths_at = _HEADER.size
        pointers_at = lengths_at + 4 * documents
        documents_at = pointers_at + 8 * documents
        index.write(_HEADER.pack(_MAGIC, 1, _CODES[dtype], documents, documents + 1))
        index.seek(documents_at)
        index.write(np.int64(0).tobytes())
        for lengths, part in parts:
            ends = tokens + np.cumsum(lengths, dtype=np.int64)
            for offset, values in (
                (lengths_at + 4 * start, lengths.astype("<i4", copy=False)),
                (pointers_at + 8 * start, (ends - lengths) * dtype.itemsize),
                (documents_at + 8 * (start + 1), np.arange(start + 1, start + len(lengths) + 1)),
            ):
                index.seek(offset)
                index.write(values.tobytes())
            stored = part.astype(dtype, copy=False).data
            binary.write(stored)
            digest.update(stored)
            start, tokens = start + len(lengths), tokens + len(part)
            max_token = max(max_token, int(part.max(initial=0)))
    about = about | {"documents": documents, "tokens": tokens, "max_token": max_token}
    about |= {"bin_sha256": digest.hexdigest(), "idx_sha256": file_sha256(idx_path)}
    write_atomic(json_path, json.dumps(about, indent=1).encode() + b"\n")


def read_about(prefix: str | Path) -> dict[str, Any]:
    """The content of the .json of the corpus at `prefix`. Raises DataError."""
    path = corpus_files(prefix)[2]
    try:
        about = json.loads(read_input(path))
        whole = isinstance(about["tokenizer_sha256"], str) and all(isinstance(about[name], int) for name in _NUMBERS)
    except DataError as error:
        raise DataError(
            f"there is no whole corpus at {prefix}: {error}. That file is written last; make it with"
            " `megagpt data preprocess`"
        ) from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(f"{path} is damaged; make the corpus again with `megagpt data preprocess`")
    return about


def check_corpus(prefix: str | Path) -> dict[str, Any]:
    """The content of the .json of the corpus at `prefix`, after a check of the sizes and headers of its three files.

    Raises DataError with the file that is missing, truncated or does not belong to the others.
    """
    about = read_about(prefix)
    bin_path, idx_path, json_path = corpus_files(prefix)
    again = "; make the corpus again with `megagpt data preprocess`"
    try:
        with open_input(idx_path) as file:
            header = file.read(_HEADER.size)
        idx_size, bin_size = file_size(idx_path), file_size(bin_path)
    except (DataError, OSError) as error:
        raise DataError(f"{error}{again}") from None
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DataError(f"{idx_path} is not the index of a tokenized corpus{again}")
    _, version, code, sequences, boundaries = _HEADER.unpack(header)
    dtype = token_dtype(about["vocab_size"])
    if version != 1 or _DTYPES.get(code) != dtype or boundaries != sequences + 1 or sequences != about["documents"]:
        raise DataError(f"{idx_path} and {json_path.name} do not belong together{again}")
    if idx_size != _HEADER.size + 12 * sequences + 8 * boundaries:
        raise DataError(f"{idx_path} is truncated or damaged: it has {idx_size} bytes for {sequences} documents{again}")
    if bin_size != about["tokens"] * dtype.itemsize:
        expected = about["tokens"] * dtype.itemsize
        raise DataError(f"{bin_path} is truncated or from another corpus: {bin_size} bytes, not {expected}{again}")
    if about["max_token"] >= about["vocab_size"]:
        raise DataError(f"{bin_path} holds token {about['max_token']}, beyond the vocabulary of {about['vocab_size']}")
    if sequences == 0:
        raise DataError(f"{prefix} has no documents")
    return about


def check_hashes(prefix: str | Path) -> str | None:
    """Read the whole corpus, and compare its files with their hashes in the .json.

    Raises DataError with the file that has changed. Returns a reason if the .json has no hashes, as in corpora made
    before hashes were kept; else None.
    """
    about = read_about(prefix)
    for path, name in zip(corpus_files(prefix), ("bin_sha256", "idx_sha256"), strict=False):
        if name not in about:
            return f"{prefix}.json has no {name}: the corpus was made before hashes were kept"
        if file_sha256(path) != about[name]:
            raise DataError(
                f"{path} is damaged: its SHA-256 is not the one in {prefix}.json; copy it again, or make the corpus "
                "again with `megagpt data preprocess`"
            )
    return None


def open_corpus(prefix: str | Path) -> tuple[Any, dict[str, Any]]:
    """(Megatron-Core's IndexedDataset, content of the .json) of the corpus at `prefix`. Raises DataError."""
    about = check_corpus(prefix)
    from megatron.core.datasets.indexed_dataset import IndexedDataset  # slow to import, and only needed here

    dataset = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    if int(dataset.sequence_lengths.sum(dtype=np.int64)) != about["tokens"]:
        raise DataError(
            f"{prefix}.idx is damaged: its lengths do not add up to {about['tokens']} tokens; "
            "make the corpus again with `megagpt data preprocess`"
        )
    return dataset, about
