"""Attention by the flash-attn package (Dao, arXiv 2307.08691), on GPUs if it is installed."""

from collections.abc import Callable
from inspect import signature

from torch import Tensor


def flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    cu_seqlens: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Output [B, Sq, H, D]; arguments as in `op.attention`.

    Raises ValueError without the package, and for a softcap with dropout or with a version before 2.6.
    """
    try:
        from flash_attn import flash_attn_func, flash_attn_varlen_func
    except ImportError as error:
        raise ValueError(
            f"backend 'flash_attn' needs the flash-attn package, which cannot be imported ({error}): install it, or use"
            " 'auto'"
        ) from error
    options = {
        "dropout_p": dropout,
        "softmax_scale": scale,
        "causal": causal,
        "window_size": (-1, -1) if window is None else (window - 1, 0 if causal else -1),
    }
    if softcap is not None:
        check_softcap(flash_attn_func, dropout)
        options["softcap"] = softcap
    if cu_seqlens is None:
        return flash_attn_func(q, k, v, **options)
    bounds, longest = cu_seqlens.int(), q.shape[1]  # no document is longer than a row
    flat = [part.flatten(0, 1) for part in (q, k, v)]
    return flash_attn_varlen_func(*flat, bounds, bounds, longest, longest, **options).view(q.shape)


def check_softcap(flash_attn_func: Callable, dropout: float) -> None:
    """Raises ValueError unless this version of the package supports a softcap with this `dropout`."""
    if "softcap" not in signature(flash_attn_func).parameters:
        raise ValueError("softcap needs flash-attn 2.6 or newer: upgrade the package, or use 'auto'")
    if dropout:
        raise ValueError("softcap and dropout together are not supported by backend 'flash_attn': use 'unfused'")
