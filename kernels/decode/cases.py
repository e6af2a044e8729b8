"""Launches of decode attention on meta tensors, for `tools/kernel_report.py`."""

from collections.abc import Callable, Iterator

import torch

from megagpt.kernels.decode import kernel


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, call that launches)."""
    for depth in (64, 80, 128, 256):
        for heads, kv_heads in ((16, 16), (64, 8)):
            if depth == 128 or heads == kv_heads:
                name = f"decode bf16 {depth}, {heads} heads on {kv_heads}"
                yield name, lambda depth=depth, heads=heads, kv_heads=kv_heads: _run(depth, heads, kv_heads)
    for depth in (128, 256):
        yield f"decode bf16 {depth}, softcap", lambda depth=depth: _run(depth, 16, 8, 50.0)


def _run(depth: int, heads: int, kv_heads: int, softcap: float | None = None) -> None:
    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    k, v = meta(1, 8192, kv_heads, depth), meta(1, 8192, kv_heads, depth)
    kernel.decode_attention(meta(1, 1, heads, depth), k, v, meta(1, dtype=torch.int32), 0, 0.125, softcap)
