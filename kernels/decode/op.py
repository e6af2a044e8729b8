"""Decode attention with three implementations: Triton for CUDA, PyTorch for CPU, and shapes only; no gradient."""

import math

import torch
from torch import Tensor

from megagpt.kernels.attention.op import attention, check_triton, pytorch_backend
from megagpt.kernels.backend import choose_backend, define_op
from megagpt.kernels.decode import reference


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    scale: float | None = None,
    first_key: Tensor | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale * q k^T) v for the newest token of each sequence; [B, 1, H, D] in q's dtype.

    q is [B, 1, H, D]; k and v are [B, Sk, Hkv, D] with H a multiple of Hkv; the token's own key and value come last.
    window: number of last keys that are seen; None: all. scale: 1/sqrt(D) when None. first_key: int32 [B], the first
    visible key of each row (padding on the left). softcap: as in `attention`. backend: auto, triton (bfloat16 and
    float16; float32 uses the reference; head dimensions as in `attention`) or torch. It has no gradient. Raises
    ValueError, naming the argument, for arguments that are not supported.
    """
    if q.dim() != 4 or q.shape[1] != 1:
        raise ValueError(f"q has shape {list(q.shape)}; it must be [batch, 1, heads, head_dim]")
    if choose_backend(backend, q) == "torch":
        options = {"first_key": first_key, "softcap": softcap, "backend": pytorch_backend(softcap)}
        return attention(q, k, v, True, window, scale, **options)
    check_triton(q, k, v, window, first_key)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise ValueError("decode_attention with backend 'triton' has no gradient: use torch.no_grad(), or `attention`")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return _decode(q, k, v, first_key, window or 0, scale, softcap)


_decode = define_op(
    "decode_attention",
    reference.decode_attention,
    "megagpt.kernels.decode.kernel:decode_attention",
    lambda q, *_: q.new_empty(q.shape),
)
