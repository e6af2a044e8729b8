"""The flash-attn package as a back end: by a stand-in that follows its documentation and, on a GPU, itself."""

import importlib.util
import itertools
import sys
import types

import pytest
import torch

from megagpt.config.load import load
from megagpt.errors import ConfigError
from megagpt.kernels.attention import attention
from megagpt.model.kernels import choose_kernels


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """Query i sees the keys from i + Sk - Sq - left to i + Sk - Sq + right; -1 is no bound, and causal is right = 0."""
    assert dropout_p == 0.0
    queries, keys, (left, right) = q.shape[1], k.shape[1], window_size
    middle = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)[None, :]
    hidden = torch.zeros(queries, keys, dtype=torch.bool)
    if left >= 0:
        hidden |= key < middle - left
    if causal or right >= 0:
        hidden |= key > middle + (0 if causal else right)
    k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], 2) for part in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
    """Documents one after the other in [tokens, heads, D]."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q >= (cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max()
    bounds = itertools.pairwise(cu_seqlens_q)
    parts = [flash_attn_func(*(x[None, a:b] for x in (q, k, v)), **options)[0] for a, b in bounds]
    return torch.cat(parts)


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def compare(device: str, dtype: torch.dtype, tolerance: float, queries: int, **options) -> None:
    generator = torch.Generator().manual_seed(queries)
    shapes = [(2, queries, 4, 64), (2, 24, 2, 64), (2, 24, 2, 64)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    found = []
    for backend in ("flash_attn", "sdpa"):
        out = attention(*inputs, backend=backend, **options)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


CASES = [
    (24, {}),
    (24, {"causal": False}),
    (24, {"window": 5}),
    (24, {"window": 5, "causal": False}),
    (24, {"scale": 0.3}),
    (7, {"window": 3}),
    (1, {}),
    (24, {"cu_seqlens": torch.tensor([0, 3, 24, 40, 48])}),
    (24, {"cu_seqlens": torch.tensor([0, 3, 24, 40, 48]), "window": 4}),
]


@pytest.mark.parametrize(("queries", "options"), CASES)
def test_equals_pytorch(stand_in, queries, options):
    compare("cpu", torch.float64, 1e-9, queries, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(not importlib.util.find_spec("flash_attn"), reason="flash-attn is not installed")
@pytest.mark.parametrize(("queries", "options"), CASES)
def test_the_package_equals_pytorch(queries, options):
    options = {key: value.cuda() if torch.is_tensor(value) else value for key, value in options.items()}
    compare("cuda", torch.bfloat16, 2e-2, queries, **options)


@pytest.mark.parametrize(
    "hidden", [{"mask": torch.zeros(2, 1, 4, 4, dtype=torch.bool)}, {"first_key": torch.zeros(2, dtype=torch.int32)}]
)
def test_what_it_lacks_is_refused(stand_in, hidden):
    with pytest.raises(ValueError, match=f"{next(iter(hidden))} is not supported by backend 'flash_attn'"):
        attention(*torch.randn(3, 2, 4, 2, 8), backend="flash_attn", **hidden)


def test_absence_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match="needs the flash-attn package"):
        attention(*torch.randn(3, 2, 4, 2, 8), backend="flash_attn")
    settings = ["model=tiny", "data.corpora=[]", "kernels.attention=flash_attn"]
    with pytest.raises(ConfigError, match="needs the flash-attn package"):
        choose_kernels(load(settings))


def test_fp32_is_refused_before_training(stand_in):
    settings = ["model=tiny", "data.corpora=[]", "kernels.attention=flash_attn", "optim.precision=fp32"]
    with pytest.raises(ConfigError, match=r"bf16 only: set optim.precision=bf16"):
        choose_kernels(load(settings))
