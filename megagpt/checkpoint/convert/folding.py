"""Biases of queries, keys and values, folded into their neighbours for an architecture that lacks them."""

from functools import lru_cache, partial

import torch
from torch import Tensor

from megagpt.checkpoint.convert.base import Source, TensorInfo
from megagpt.checkpoint.convert.common import LazySource
from megagpt.errors import CheckpointError

NORM, QKV, PROJECTION = "input_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj"


def has_qkv_bias(source: Source) -> bool:
    """Whether any bias of queries, keys and values differs from zero."""
    return any(bool(source.read(name).any()) for name in source.tensors if _is_qkv_bias(name))


def fold_qkv_bias(source: Source) -> Source:
    """A source that computes the same without those biases.

    With x the norm's output, a shift d of its bias where Wq d = bq gives the queries their bias. The keys' bias, and
    what d adds to them, adds the same to all scores of a query, which softmax ignores. Probabilities sum to one, so
    the values' bias, less what d adds, passes through attention and moves the projection's bias by Wo (bv - Wv d).
    Needs as many query as key heads. The biases that take them are float32, because bf16 would round away what they
    take.
    """
    model = source.model
    width = model.head_size

    @lru_cache(maxsize=1)  # a layer's tensors are read one after the other
    def shifts(layer: str) -> tuple[Tensor, Tensor]:
        weight, bias, out = (
            source.read(f"{layer}.{name}").double() for name in (f"{QKV}.weight", f"{QKV}.bias", f"{PROJECTION}.weight")
        )
        wq, _, wv = weight.view(-1, 3, width, model.hidden_size).unbind(1)
        bq, _, bv = bias.view(-1, 3, width).unbind(1)
        try:
            shift = torch.linalg.solve(wq.flatten(0, 1), bq.flatten())
        except RuntimeError as error:
            raise CheckpointError(
                f"{layer}.{QKV}.bias cannot be folded into the norm before it, because the queries' weights are"
                f" singular ({error}): train with model.bias=false to export banded attention"
            ) from error
        return shift, out @ (bv.flatten() - wv.flatten(0, 1) @ shift)

    def moved(name: str, layer: str, which: int) -> Tensor:
        return (source.read(name).double() + shifts(layer)[which]).float()

    readers, tensors = {name: partial(source.read, name) for name in source.tensors}, dict(source.tensors)
    for name in filter(_is_qkv_bias, source.tensors):
        layer = name.removesuffix(f".{QKV}.bias")
        info = source.tensors[name]
        readers[name] = partial(torch.zeros, info.shape, dtype=info.dtype)
        for which, changed in enumerate((f"{layer}.{NORM}.bias", f"{layer}.{PROJECTION}.bias")):
            readers[changed] = partial(moved, changed, layer, which)
            tensors[changed] = TensorInfo(source.tensors[changed].shape, torch.float32)
    return LazySource(source.path, source.format, model, source.step, tensors, readers, source.tokenizer)


def _is_qkv_bias(name: str) -> bool:
    return name.startswith("model/") and name.endswith(f".{QKV}.bias")
