"""Soft-capped attention: against transformers' Gemma 2, and the Triton kernels against the textbook in float64."""

import sys
import types

import pytest
import torch
from check import assert_near
from test_attention import tensors as views
from test_attention_triton import BACKWARD, FORWARD, check, tensors
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from megagpt.config.load import load
from megagpt.errors import ConfigError
from megagpt.kernels.attention import attention
from megagpt.kernels.attention.masks import hidden_keys
from megagpt.kernels.decode import decode_attention
from megagpt.model.kernels import choose_kernels

GEMMA = ["model=tiny", "data.corpora=[]", "model.attention_softcap=2.0"]


def gemma(q: Tensor, k: Tensor, v: Tensor, softcap: float, scale: float, window: int | None = None) -> Tensor:
    """Transformers' attention, with an additive mask, on our layout."""
    module = types.SimpleNamespace(num_key_value_groups=q.shape[2] // k.shape[2], training=False)
    hidden = hidden_keys(q.shape[1], k.shape[1], True, window, q.device)
    mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, float("-inf"))[None, None]
    parts = (part.transpose(1, 2) for part in (q, k, v))
    return eager_attention_forward(module, *parts, mask, scaling=scale, softcap=softcap)[0]


def run(function, parts: list[Tensor], **options) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    leaves = [part.detach().requires_grad_() for part in parts]
    out = function(*leaves, softcap=1.5, scale=0.7, **options)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


@pytest.mark.parametrize("backend", ["auto", "unfused", "reference"])
@pytest.mark.parametrize(("queries", "window"), [(21, None), (21, 6), (4, 6)])
def test_equals_gemma(backend: str, queries: int, window: int | None):
    parts = views(queries, 21, 2, torch.float32)[:3]
    for ours, theirs in zip(
        run(attention, parts, window=window, backend=backend), run(gemma, parts, window=window), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2.5e-2)])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 20), (False, None)])
def test_triton(device, launched, dtype, tolerance, causal, window):
    parts = tensors(130, 130, 2, 1, 64, dtype, device, batch=1)
    check(*parts, tolerance, causal=causal, window=window, softcap=1.2, scale=0.5)
    assert launched == [FORWARD, *BACKWARD]


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [128, 256])
def test_triton_packed(device, dim):
    bounds = torch.tensor([0, 5, 70], dtype=torch.int32, device=device)
    parts = tensors(70, 70, 2, 1, dim, torch.float16, device, batch=1)
    check(*parts, 2e-3, cu_seqlens=bounds, softcap=0.8)


def test_triton_bounds_the_scores(device):
    """Of scores far beyond the cap every probability stays within exp(2 softcap) of the others, without overflow."""
    q, k, v = tensors(33, 33, 1, 1, 64, torch.float16, device, batch=1)
    _, lse = attention(100 * q, 100 * k, v, softcap=3.0, return_lse=True, backend="triton")
    seen = torch.arange(1, 34, device=device).log()
    assert ((lse[0, 0] - seen).abs() <= 3.0 + 1e-5).all()


@pytest.mark.gpu
@pytest.mark.parametrize(("keys", "window", "processors"), [(300, None, 1), (300, 100, 1000)])
def test_decode(monkeypatch, device, keys, window, processors):
    monkeypatch.setattr("megagpt.kernels.decode.kernel.multiprocessors", lambda device: processors)
    q, k, v = tensors(1, keys, 4, 2, 64, torch.float16, device)
    first_key = torch.tensor([0, keys // 2], dtype=torch.int32, device=device)
    exact = [part.double() for part in (q, k, v)]
    options = {"window": window, "first_key": first_key, "softcap": 1.2}
    expected = attention(*exact, backend="reference", **options)
    for backend in ("triton", "torch"):
        assert_near(decode_attention(q, k, v, backend=backend, **options), expected, 2e-3, backend)


def test_opcheck_and_compile(device):
    q, k, v = (part.requires_grad_() for part in tensors(40, 40, 2, 1, 64, torch.float16, device, batch=1))
    arguments = (q, k, v, None, None, None, True, 0, 0.125, 2.0)
    torch.library.opcheck(torch.ops.megagpt.attention, arguments, rtol=5e-2, atol=5e-3)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    eager = attention(q, k, v, softcap=2.0, backend="triton")
    assert torch.equal(compiled(q, k, v, softcap=2.0, backend="triton"), eager)


@pytest.mark.parametrize("backend", ["sdpa", "flash", "cudnn"])
def test_back_ends_without_it_refuse(backend):
    with pytest.raises(ValueError, match=f"softcap is not supported by backend '{backend}': use 'triton'"):
        attention(*torch.randn(3, 1, 4, 2, 8), softcap=2.0, backend=backend)
    with pytest.raises(ConfigError, match=f"kernels.attention={backend} does not support model.attention_softcap=2.0"):
        choose_kernels(load([*GEMMA, f"kernels.attention={backend}"]))


@pytest.mark.parametrize("softcap", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_values_are_named(softcap):
    with pytest.raises(ValueError, match=f"softcap is {softcap}; it must be positive"):
        attention(*torch.randn(3, 1, 4, 2, 8), softcap=softcap)


def test_auto_takes_one_that_can():
    assert choose_kernels(load(GEMMA)).attention == "unfused"
    assert choose_kernels(load(GEMMA[:2])).attention == "sdpa"


def test_flash_attn(monkeypatch):
    """The package's softcap, which versions before 2.6 lack and which it cannot combine with dropout."""
    module = types.ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", module)

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0):
        return gemma(q, k, v, softcap, softmax_scale)

    module.flash_attn_func = module.flash_attn_varlen_func = flash_attn_func
    parts = views(21, 21, 2, torch.float32)[:3]
    for ours, theirs in zip(run(attention, parts, backend="flash_attn"), run(gemma, parts), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="softcap and dropout together"):
        attention(*parts, softcap=1.5, dropout=0.1, backend="flash_attn")
    with pytest.raises(ConfigError, match=r"model\.attention_softcap=2\.0: softcap and dropout together"):
        choose_kernels(load([*GEMMA, "kernels.attention=flash_attn", "model.attention_dropout=0.1"]))
    module.flash_attn_func = lambda q, k, v, dropout_p, softmax_scale, causal, window_size: q
    with pytest.raises(ValueError, match=r"softcap needs flash-attn 2\.6"):
        attention(*parts, softcap=1.5, backend="flash_attn")
    with pytest.raises(ConfigError, match=r"model.attention_softcap=2.0: softcap needs flash-attn 2\.6"):
        choose_kernels(load([*GEMMA, "kernels.attention=flash_attn"]))
