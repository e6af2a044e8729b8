"""How well a model predicts held-out documents, and how well general-purpose compressors do on the same bytes."""

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
    """Loss (nats a token), perplexity and bits per byte over the documents of `split`; collective.

    `max_tokens` None reads all of them. bits_per_byte is the total cross-entropy in bits over the number of UTF-8
    bytes of the predicted text, so that models with different tokenizers compare. Empty when `split` has no documents.
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
    """The engine's evaluation on `batches`, this replica's, as many on every one; collective."""
    dims, count = engine.dims, len(batches)
    if dims.virtual_size > 1:  # the interleaved schedule takes multiples of the number of stages
        count += -count % dims.pipeline_size
    return engine.evaluate(_followed_by_no_loss(batches, count), count)


def _followed_by_no_loss(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """`count` batches: the last one stands for those that are missing, and counts for nothing."""
    last = None
    for last in batches:
        count -= 1
        yield last
    for _ in range(count):
        yield dataclasses.replace(last, loss_mask=torch.zeros_like(last.loss_mask))


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte that `gzip -9` and `xz -9` need for `text`, headers included, and its size."""
    if not text:
        return {}
    return {
        "gzip_9_bits_per_byte": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz_9_bits_per_byte": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "compressed_bytes": len(text),
    }
