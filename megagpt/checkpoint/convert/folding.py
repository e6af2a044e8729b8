"""Folds the biases of queries, keys and values into neighbouring biases, for an architecture that lacks them."""

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
    """A source with the same results and without these biases.

    Adding d with Wq d = bq to the bias of the norm before attention gives the queries their bias. The keys' bias, and
    the change of the keys by d, add the same number to all scores of a query, which softmax ignores. Probabilities sum
    to one, so the values' bias, minus the change of the values by d, passes through attention unchanged and adds
    Wo (bv - Wv d) to the projection's bias. The model must have as many key heads as query heads. The changed biases
    are float32, because bf16 would lose the addends by rounding. Reading raises CheckpointError if Wq is singular.
    """
    model = source.model
    width = model.head_size

    @lru_cache(maxsize=1)  # the tensors of a layer are read consecutively
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
