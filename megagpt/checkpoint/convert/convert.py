"""Converts checkpoints between formats: recognition, conversion, proof by comparison, and atomic publication."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megagpt.checkpoint.convert import (
    deepspeed,
    deepspeed_universal,
    hugging_face,
    megatron,
    megatron_dist,
    native,
    sentence_transformers,
)
from megagpt.checkpoint.convert.base import Format, Source
from megagpt.checkpoint.convert.tokenizers import check_tokenizer
from megagpt.checkpoint.convert.verify import TOLERANCES, compared, largest_difference
from megagpt.checkpoint.files import explain, sync_folder
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from megagpt.log import progress

FORMATS = {
    module.FORMAT.name: module.FORMAT
    for module in (
        native,
        sentence_transformers,
        hugging_face,
        megatron,
        megatron_dist,
        deepspeed_universal,
        deepspeed,
    )
}
"""{name: format}. A path has the first of these formats that recognises it."""

WITH_TOKENIZER = (native.NAME, hugging_face.NAME, sentence_transformers.NAME)
"""Formats that include a tokenizer."""


@dataclass(frozen=True)
class Result:
    """The outcome of a conversion."""

    source: Source
    dropped: tuple[str, ...]
    """Kinds of tensors that the target's format cannot store."""
    difference: float | None
    """Largest difference of logits in units of their spread, or of vectors; None without the proof."""


def detect(path: Path, formats: Sequence[Format]) -> Format | None:
    """The first of the formats that recognises `path`; None when none does. Raises CheckpointError for no folder."""
    with _named_errors(path):
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder" if os.path.lexists(path) else f"{path} does not exist")
        return next((form for form in formats if form.detect(path)), None)


def recognised(path: Path) -> Format:
    """The format of the checkpoint at `path`. Raises CheckpointError when no format recognises it."""
    if (found := detect(path, list(FORMATS.values()))) is None:
        raise CheckpointError(f"{path} holds no checkpoint of a known format: {', '.join(FORMATS)}")
    return found


def sorted_out(source: Source, wanted: Format) -> tuple[list[str], tuple[str, ...]]:
    """Names of the source's tensors that a format can store, and kinds of the tensors that it cannot."""
    carried = [name for name in source.tensors if name.startswith("model/") or wanted.carries_optimizer]
    dropped = {name.split("/")[0] for name in source.tensors} - {name.split("/")[0] for name in carried}
    return carried, tuple(sorted(dropped))


def opened(form: Format, path: Path, like: ModelConfig | None) -> Source:
    """The checkpoint, opened with a given format. Raises CheckpointError for any fault of its files."""
    with _named_errors(path):
        source = form.open_source(path, like)
    for name, info in source.tensors.items():
        if name.startswith("model/") and not info.dtype.is_floating_point:
            raise CheckpointError(f"{path}: {name} is {info.dtype}, not a floating-point type")
    return source


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turns OSError and RecursionError (from deeply nested values) into CheckpointError with a path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except RecursionError:
        raise CheckpointError(f"{path} is refused: values in it are nested too deeply") from None


def convert(
    path: Path,
    target: Path,
    to: str,
    like: ModelConfig | None = None,
    prove: bool = True,
    tolerance: float | None = None,
) -> Result:
    """Convert the checkpoint at `path` into the new folder `target`, which appears complete or not at all.

    like: the model's shape, for formats that do not give it. prove: whether to compare the logits of both sides (or the
    vectors of an embedding model) before `target` appears. Raises CheckpointError when `target` exists, the source is
    damaged, the format cannot hold the model, or the difference exceeds `tolerance` (default: `TOLERANCES`).
    """
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} exists: give a new name, or remove it")
    found, wanted = recognised(path), FORMATS[to]
    source = opened(found, path, like)
    check_head(path, source.model.head, found, wanted)
    if to in WITH_TOKENIZER:
        check_tokenizer(path, source)
    what = compared(source.model)
    of = " of their spread" if what == "logits" else ""
    tolerance = TOLERANCES[what] if tolerance is None else tolerance
    carried, dropped = sorted_out(source, wanted)
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    size = sum(source.tensors[name].size for name in carried)
    try:
        temporary.mkdir(parents=True)
        with progress(size, "B", f"{found.name} to {to}") as bar:
            wanted.write(source, temporary, bar)
        difference = largest_difference(source, opened(wanted, temporary, source.model)) if prove else None
        if difference is not None and not difference <= tolerance:
            raise CheckpointError(
                f"the {what} of {path} and of its conversion differ by {difference:.3g}{of}, more than"
                f" {tolerance:g}: {target} was not written"
            )
        sync_folder(temporary)
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {explain(error, target.parent, size)}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)
    return Result(source, dropped, difference)


def check_head(path: Path, head: str, found: Format, wanted: Format) -> None:
    """Raises CheckpointError unless the wanted format can hold models with this head."""
    name = sentence_transformers.NAME
    if head == "scalar":
        raise CheckpointError(
            f"{path} has a scalar head, as reward models do, which no format of language models holds"
        )
    if head == "embedding" and found.name == name:
        raise CheckpointError(
            f"{path} is a folder of sentence-transformers, which megagpt writes and does not read: convert the original"
            " run"
        )
    if head == "embedding" and wanted.name != name:
        raise CheckpointError(
            f"{path} has an embedding head, which no format of language models holds: use --to {name}"
        )
    if head == "tokens" and wanted.name == name:
        raise CheckpointError(
            f"{path} is a language model, which gives no vectors of texts: use --to {hugging_face.NAME}, or train an"
            f" embedding model first, as in `megagpt train stage=embed checkpoint.load={path}"
            " 'data.pairs=[pairs.jsonl]'`"
        )
