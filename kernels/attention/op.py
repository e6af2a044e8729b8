"""Attention with its back ends: our Triton kernels, PyTorch's implementations, flash-attn, and a reference."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megagpt.kernels.attention import reference
from megagpt.kernels.attention.flash_attn import flash_attn
from megagpt.kernels.attention.masks import document_bounds, document_mask, padding_mask
from megagpt.kernels.attention.sdpa import sdpa, unfused
from megagpt.kernels.backend import check_tensor, choose_backend, define_op

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
    softcap: float | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    first_key: Tensor | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v for every head; [B, Sq, H, D] in q's dtype.

    q is [B, Sq, H, D]; k and v are [B, Sk, Hkv, D] with H a multiple of Hkv (grouped queries). Strided views are
    allowed. The output of a query that sees no key is zero.

    causal: a query sees the keys up to its own position. The last query is at the position of the last key, so Sq < Sk
    is the case of a KV cache. window: a query sees at most `window` keys, its own and the last ones before it. scale:
    positive; 1/sqrt(D) when None. softcap: positive; scaled scores s become softcap x tanh(s / softcap) before masks
    and softmax (Gemma 2, arXiv 2408.00118). cu_seqlens: int32 or int64 [N + 1], cumulative lengths of the documents
    packed into the B x S tokens, row by row, from 0 to B S; tokens see only their own document; needs Sq = Sk.
    first_key: int32 [B], the first visible key of each row (padding on the left); not differentiable with Triton.
    mask: bool, broadcastable to [B, H, Sq, Sk], True hides the key. All of these combine. dropout: probability of
    dropping an attention probability. return_lse: whether to also return log(sum(exp(scores))), float32 [B, H, Sq],
    which is -inf for a query that sees no key.

    backend: `triton` (bfloat16 and float16; float32 uses the reference; head dimensions HEAD_DIMS; neither mask nor
    dropout; the backward pass is deterministic), `flash`, `cudnn` or `sdpa` (PyTorch's implementations; no softcap),
    `flash_attn` (the package, on CUDA; neither mask nor first_key), `unfused` (two matrix products around
    `scale_mask_softmax`), `reference` (the formula in float32), or `auto`: see `choose_attention`.
    Raises ValueError, naming the argument, for arguments that are wrong or that the back end does not support.
    """
    _check(q, k, v, window, mask, cu_seqlens, first_key, dropout)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    softcap = None if softcap is None else float(softcap)
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive")
    backend = choose_attention(backend, q, mask is not None, dropout, return_lse, softcap)
    call = _Call(q, k, v, causal, window, scale, softcap, mask, cu_seqlens, first_key, dropout, return_lse, backend)
    run, instead = BACKENDS[backend]
    given = {
        "mask": mask is not None,
        "first_key": first_key is not None,
        "softcap": softcap is not None,
        "dropout": dropout,
        "return_lse": return_lse,
    }
    for name, remedy in instead.items():
        if given[name]:
            raise ValueError(f"{name} is not supported by backend {backend!r}: use {remedy}")
    return run(call)


class _Call(NamedTuple):
    """The arguments of `attention`, checked, with their defaults filled in."""

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    mask: Tensor | None
    cu_seqlens: Tensor | None
    first_key: Tensor | None
    dropout: float
    return_lse: bool
    backend: str

    def bounds(self) -> tuple[Tensor | None, Tensor | None]:
        """See `document_bounds`; (None, None) without packed documents."""
        if self.cu_seqlens is None:
            return None, None
        return document_bounds(self.cu_seqlens, self.q.shape[0], self.q.shape[1])

    def hidden(self) -> Tensor | None:
        """Bool [B or 1, H or 1, Sq or 1, Sk]: union of the mask, the other documents and the padding, or None."""
        hidden = self.mask
        if self.cu_seqlens is not None:
            start, end = self.bounds()
            documents = document_mask(start, end)
            hidden = documents if hidden is None else hidden | documents
        if self.first_key is not None:
            padding = padding_mask(self.first_key, self.k.shape[1])
            hidden = padding if hidden is None else hidden | padding
        return hidden


def _run_triton(call: _Call) -> Tensor | tuple[Tensor, Tensor]:
    q, k, v = call.q, call.k, call.v
    check_triton(q, k, v, call.window, call.first_key)
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if call.first_key is not None and needs_grad:
        raise ValueError("first_key has no gradient with backend 'triton': use torch.no_grad(), or 'sdpa'")
    return _run_op(_forward, call)


def _run_reference(call: _Call) -> Tensor | tuple[Tensor, Tensor]:
    return _run_op(reference.attention_forward, call)


def _run_op(forward: Callable, call: _Call) -> Tensor | tuple[Tensor, Tensor]:
    start, end = call.bounds()
    masking = (start, end, call.first_key, call.causal, call.window or 0)
    out, lse = forward(call.q, call.k, call.v, *masking, call.scale, call.softcap)
    return (out, lse) if call.return_lse else out


def _run_flash_attn(c: _Call) -> Tensor:
    return flash_attn(c.q, c.k, c.v, c.causal, c.window, c.cu_seqlens, c.scale, c.softcap, c.dropout)


def _run_unfused(c: _Call) -> Tensor:
    return unfused(c.q, c.k, c.v, c.causal, c.window, c.hidden(), c.scale, c.softcap, c.dropout)


def _run_sdpa(c: _Call) -> Tensor:
    return sdpa(c.q, c.k, c.v, c.causal, c.window, c.hidden(), c.scale, c.dropout, c.backend)


_NO_LSE = {"return_lse": "'triton' or 'reference'"}
_NO_SOFTCAP = _NO_LSE | {"softcap": "'triton', 'flash_attn' or 'unfused'"}
_NO_MASK = {"mask": "cu_seqlens, first_key, or 'sdpa'", "dropout": "0, 'sdpa' or 'unfused'"}

BACKENDS: dict[str, tuple[Callable[[_Call], Tensor | tuple[Tensor, Tensor]], dict[str, str]]] = {
    "triton": (_run_triton, _NO_MASK),
    "sdpa": (_run_sdpa, _NO_SOFTCAP),
    "flash": (_run_sdpa, _NO_SOFTCAP),
    "cudnn": (_run_sdpa, _NO_SOFTCAP),
    "flash_attn": (_run_flash_attn, _NO_LSE | {"mask": "'sdpa'", "first_key": "'sdpa'"}),
    "unfused": (_run_unfused, _NO_LSE),
    "reference": (_run_reference, _NO_MASK),
}
"""{back end: (its function, {argument that it does not support: what to use instead})}."""


def choose_attention(
    backend: str,
    q: Tensor,
    masked: bool = False,
    dropout: float = 0.0,
    return_lse: bool = False,
    softcap: float | None = None,
) -> str:
    """The back end that is used. `auto` is Triton on CUDA if it supports the call; otherwise it is the reference for
    `return_lse`, and `pytorch_backend` without it.

    masked: whether there is a boolean mask. Other names are returned unchanged. Raises ValueError for unknown ones.
    """
    otherwise = "reference" if return_lse else pytorch_backend(softcap)
    if backend == "auto" and not triton_supports(q.dtype, q.shape[-1], masked, dropout):
        return otherwise
    return choose_backend(backend, q, (otherwise, *(name for name in BACKENDS if name not in ("triton", otherwise))))


def pytorch_backend(softcap: float | None) -> str:
    """The back end that needs only PyTorch: `sdpa`, or `unfused` for a softcap, which PyTorch's fused ones lack."""
    return "sdpa" if softcap is None else "unfused"


def triton_supports(dtype: torch.dtype, head_dim: int, masked: bool = False, dropout: float = 0.0) -> bool:
    """Whether the Triton kernels support this (and do not use the reference)."""
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
    """Raises ValueError, naming the argument, unless the Triton back end supports these arguments."""
    _check(q, k, v, window, None, None, first_key, 0.0)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, tensor)
    if q.shape[-1] not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(f"q has head dimension {q.shape[-1]}; backend 'triton' supports {known}")


def _fake_forward(q, k, v, *_):
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.promote_types(torch.float32, q.dtype))
    return q.new_empty(q.shape), lse


_forward = define_op("attention", reference.attention_forward, f"{KERNEL}:attention_forward", _fake_forward)
_backward = define_op(
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
    return *_backward(dout, dlse, q, k, v, out, lse, start, end, *ctx.settings), *(None,) * 7


torch.library.register_autograd("megagpt::attention", _differentiate, setup_context=_save)
