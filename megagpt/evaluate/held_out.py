"""Evaluates a model's loss on held-out documents, and the compression of the same bytes by gzip and xz."""

import dataclasses
import gzip
import lzma
import math
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from megagpt.data.batch import Batch, HeldOut, Loader
from megagpt.data.packed import Split
from megagpt.parallel.engine import Engine, StepResult
from megagpt.train.metrics import perplexity


def evaluate(engine: Engine, loader: Loader, split: Split, max_tokens: int | None) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per byte over the documents of `split`. Collective.

    max_tokens: None reads all documents. bits_per_byte is the total cross-entropy in bits divided by the number of
    UTF-8 bytes of the predicted text, so it is comparable between tokenizers. Empty when `split` has no documents.
    """
    dims = engine.dims
    batches = loader.evaluation_batches(split, max_tokens, dims.data_rank, dims.data_size)
    if not len(batches):
        return {}
    result = mean_loss(engine, batches)
    counted = torch.tensor(
        loader.evaluation_bytes(split, max_tokens, dims.rank, dims.world_size), dtype=torch.int64, device=engine.device
    )
    dist.all_reduce(counted)
    size = int(counted)
    return {
        "loss": result.loss,
        "perplexity": perplexity(result.loss),
        "bits_per_byte": result.loss * result.count / math.log(2) / size if size else math.nan,
        "tokens": result.count,
        "bytes": size,
    }


def mean_loss(engine: Engine, batches: HeldOut | list[Batch]) -> StepResult:
    """The engine's evaluation on this replica's `batches`; every replica has the same number. Collective."""
    dims, count = engine.dims, len(batches)
    if dims.virtual_size > 1:  # the interleaved schedule needs a multiple of the number of stages
        count += -count % dims.pipeline_size
    return engine.evaluate(_followed_by_no_loss(batches, count), count)


def _followed_by_no_loss(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """`count` batches; missing ones are copies of the last with a loss mask of zeros."""
    last = None
    for last in batches:
        count -= 1
        yield last
    for _ in range(count):
        yield dataclasses.replace(last, loss_mask=torch.zeros_like(last.loss_mask))


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte of `text` compressed by `gzip -9` and `xz -9`, including headers, and its size in bytes."""
    if not text:
        return {}
    return {
        "gzip_9_bits_per_byte": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz_9_bits_per_byte": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "compressed_bytes": len(text),
    }
