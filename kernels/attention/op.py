"""Attention with its back ends: our Triton kernels, PyTorch's, and the textbook's."""

import math

import torch
from torch import Tensor

from megagpt.kernels.attention import reference
from megagpt.kernels.attention.flash_attn import flash_attn
from megagpt.kernels.attention.masks import document_bounds, document_mask, padding_mask
from megagpt.kernels.attention.sdpa import sdpa, unfused
from megagpt.kernels.backend import check_tensor, define, resolve

KERNEL = "megagpt.kernels.attention.kernel"
HEAD_DIMS = (64, 80, 96, 128, 192, 256)
"""Head dimensions of the Triton kernels."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    first_key: Tensor | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v for every head; [B, Sq, H, D] in q's dtype.

    q is [B, Sq, H, D]; k and v are [B, Sk, Hkv, D] with H a multiple of Hkv (grouped queries). Strided views do.
    A query that sees no key gives zeros.

    causal: a query sees the keys up to its own position; the last query stands at the last key, so Sq < Sk is a KV
    cache. window: and of the keys before it only the last `window`, itself included. scale: positive; 1/sqrt(D) when
    None. cu_seqlens: int32 or int64 [N + 1], cumulative lengths of the documents packed into the B x S tokens, row by
    row, from 0 to B S; tokens see only their own document; needs Sq = Sk. first_key: int32 [B], keys of a row before it
    are hidden (padding on the left); not differentiable with Triton. mask: bool, broadcastable to [B, H, Sq, Sk], True
    hides the key. All of these combine. dropout: probability of dropping an attention probability. return_lse: return
    also log(sum(exp(scores))), float32 [B, H, Sq], -inf for a query that sees no key.

    backend: `triton` (bfloat16 and float16; float32 takes the reference; head dimensions HEAD_DIMS; neither mask nor
    dropout; the backward pass is deterministic), `flash`, `cudnn` or `sdpa` (PyTorch's implementations), `flash_attn`
    (the package, on CUDA; neither mask nor first_key), `unfused` (two matrix products around `scale_mask_softmax`),
    `reference` (the textbook in float32), or `auto`: see `choose`.
    Raises ValueError, naming the argument, for what cannot be.
    """
    _check(q, k, v, window, mask, cu_seqlens, first_key, dropout)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be positive")
    backend = choose(backend, q, mask is not None, dropout, return_lse)
    start, end = (None, None)
    if cu_seqlens is not None and backend != "flash_attn":
        start, end = document_bounds(cu_seqlens, *q.shape[:2])
    if backend in ("triton", "reference"):
        if dropout:
            raise ValueError(f"dropout is {dropout}, but backend {backend!r} has none: use 0, 'sdpa' or 'unfused'")
        if mask is not None:
            raise ValueError(f"mask is not supported by backend {backend!r}: use cu_seqlens, first_key, or 'sdpa'")
        if backend == "triton":
            check_triton(q, k, v, window, first_key)
            needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
            if first_key is not None and needs_grad:
                raise ValueError("first_key has no gradient with backend 'triton': use torch.no_grad(), or 'sdpa'")
        run = _forward if backend == "triton" else reference.attention_forward
        out, lse = run(q, k, v, start, end, first_key, causal, window or 0, scale)
        return (out, lse) if return_lse else out
    if return_lse:
        raise ValueError(f"backend {backend!r} cannot return the log-sum-exp: use 'triton' or 'reference'")
    if backend == "flash_attn":
        if mask is not None or first_key is not None:
            hidden = "mask" if mask is not None else "first_key"
            raise ValueError(f"{hidden} is not supported by backend 'flash_attn': use 'sdpa'")
        return flash_attn(q, k, v, causal, window, cu_seqlens, scale, dropout)
    if start is not None:
        documents = document_mask(start, end)
        mask = documents if mask is None else mask | documents
    if first_key is not None:
        padding = padding_mask(first_key, k.shape[1])
        mask = padding if mask is None else mask | padding
    if backend == "unfused":
        return unfused(q, k, v, causal, window, mask, scale, dropout)
    return sdpa(q, k, v, causal, window, mask, scale, dropout, backend)


def choose(backend: str, q: Tensor, masked: bool = False, dropout: float = 0.0, return_lse: bool = False) -> str:
    """What `auto` means: Triton on CUDA for what it supports, otherwise PyTorch's, or the reference for `return_lse`.

    masked: whether there is a boolean mask. Other back ends are returned as they are, once known to exist.
    """
    if backend == "auto" and not supported(q.dtype, q.shape[-1], masked, dropout):
        return "reference" if return_lse else "sdpa"
    if backend == "auto" and not q.is_cuda and return_lse:
        return "reference"
    return resolve(backend, q, ("sdpa", "flash", "cudnn", "flash_attn", "unfused", "reference"))


def supported(dtype: torch.dtype, head_dim: int, masked: bool = False, dropout: float = 0.0) -> bool:
    """Whether the Triton kernels themselves compute this."""
    return dtype in (torch.bfloat16, torch.float16) and head_dim in HEAD_DIMS and not masked and not dropout


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    first_key: Tensor | None,
    dropout: float,
) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [batch, sequence, heads, head_dim]")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, but q is {q.dtype} on {q.device}")
    batch, queries, heads, depth = q.shape
    if k.shape != v.shape or k.shape[0] != batch or k.shape[3] != depth:
        raise ValueError(
            f"k has shape {list(k.shape)} and v {list(v.shape)}; with q {list(q.shape)} both must be "
            f"[{batch}, keys, kv_heads, {depth}]"
        )
    if not k.shape[2] or heads % k.shape[2]:
        raise ValueError(f"q has {heads} heads; they must be a multiple of the {k.shape[2]} heads of k and v")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; it must be bool, True where a key is hidden")
    if cu_seqlens is not None:
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}; it must be int32 or int64 [documents + 1]"
            )
        if queries != k.shape[1]:
            raise ValueError(f"cu_seqlens needs as many queries as keys, but q has {queries} and k {k.shape[1]}")
    if first_key is not None and (first_key.shape != (batch,) or first_key.dtype.is_floating_point):
        raise ValueError(f"first_key is {first_key.dtype} {list(first_key.shape)}; it must be int32 [{batch}]")


def check_triton(q: Tensor, k: Tensor, v: Tensor, window: int | None, first_key: Tensor | None) -> None:
    """Raise ValueError, naming the argument, unless the Triton kernels take these."""
    _check(q, k, v, window, None, None, first_key, 0.0)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, tensor)
    if q.shape[-1] not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(f"q has head dimension {q.shape[-1]}; backend 'triton' supports {known}")


def _fake_forward(q, k, v, start, end, first_key, causal, window, scale):
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.promote_types(torch.float32, q.dtype))
    return q.new_empty(q.shape), lse


_forward = define("attention", reference.attention_forward, f"{KERNEL}:attention_forward", _fake_forward)
_backward = define(
    "attention_backward",
    reference.attention_backward,
    f"{KERNEL}:attention_backward",
    lambda dout, dlse, q, k, v, *_: tuple(part.new_empty(part.shape) for part in (q, k, v)),
)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, start, end, _, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, start, end)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, start, end = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    return *_backward(dout, dlse, q, k, v, out, lse, start, end, *ctx.settings), *(None,) * 6


torch.library.register_autograd("megagpt::attention", _differentiate, setup_context=_save)
