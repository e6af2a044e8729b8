"""How well a model predicts held-out documents, and how well general-purpose compressors do on the same bytes."""

import dataclasses
import gzip
import lzma
import math

import torch

from megagpt.data.batch import Batch, Loader
from megagpt.data.packed import Split
from megagpt.parallel.engine import Engine, StepResult


def evaluate(engine: Engine, loader: Loader, split: Split, max_tokens: int | None) -> dict[str, float]:
    """Loss (nats a token), perplexity and bits per byte over the documents of `split`; collective.

    `max_tokens` None reads all of them. bits_per_byte is the total cross-entropy in bits over the number of UTF-8
    bytes of the predicted text, so that models with different tokenizers compare. Empty when `split` has no documents.
    """
    dims = engine.dims
    batches = list(loader.evaluation_batches(split, max_tokens, dims.data_rank, dims.data_size))
    if not batches:
        return {}
    result = mean_loss(engine, batches)
    size = loader.evaluation_bytes(split, max_tokens)
    return {
        "loss": result.loss,
        "perplexity": math.exp(min(result.loss, 700.0)),
        "bits_per_byte": result.loss * result.count / math.log(2) / size if size else math.nan,
        "tokens": result.count,
        "bytes": size,
    }


def mean_loss(engine: Engine, batches: list[Batch]) -> StepResult:
    """The engine's evaluation on `batches`, this replica's, as many on every one; collective."""
    dims = engine.dims
    if dims.virtual_size > 1:  # the interleaved schedule takes multiples of the number of stages
        batches = batches + [_without_loss(batches[-1])] * (-len(batches) % dims.pipeline_size)
    return engine.evaluate(iter(batches), len(batches))


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits per byte that `gzip -9` and `xz -9` need for `text`, headers included."""
    if not text:
        return {}
    return {
        "gzip_9_bits_per_byte": 8 * len(gzip.compress(text, 9, mtime=0)) / len(text),
        "xz_9_bits_per_byte": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def _without_loss(batch: Batch) -> Batch:
    return dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
