"""Launches of attention on meta tensors, for `tools/kernel_report.py`."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megagpt.kernels.attention import kernel
from megagpt.kernels.attention.op import HEAD_DIMS

FLAGS = {
    "full": {"causal": False},
    "causal": {"causal": True},
    "banded": {"causal": True, "window": 256},
    "packed": {"causal": True, "window": 256, "packed": True},
    "padded": {"causal": True, "padded": True},
    "softcap": {"causal": True, "window": 256, "softcap": 50.0},
    "packed softcap": {"causal": True, "window": 256, "packed": True, "softcap": 50.0},
}


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, call that launches): one head dimension with all masks, the others with the simplest and largest ones."""
    for depth in HEAD_DIMS:
        for name, flags in FLAGS.items():
            if (
                depth == 128
                or name == "causal"
                or (name in ("packed", "softcap", "packed softcap") and depth in (64, 256))
            ):
                yield f"attention bf16 {depth} {name}", lambda depth=depth, flags=flags: _run(depth, **flags)
    yield "attention fp16 128 causal", lambda: _run(128, causal=True, dtype=torch.float16)


def _run(
    depth: int,
    causal: bool,
    window: int = 0,
    packed: bool = False,
    padded: bool = False,
    softcap: float | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, k, v = (meta(2, 8192, 2048 // depth, depth) for _ in range(3))
    bounds = meta(2, 8192, dtype=torch.int32) if packed else None
    first_key = meta(2, dtype=torch.int32) if padded else None
    out, lse = kernel.attention_forward(q, k, v, bounds, bounds, first_key, causal, window, 0.125, softcap)
    if not padded:
        kernel.attention_backward(out, None, q, k, v, out, lse, bounds, bounds, causal, window, 0.125, softcap)
