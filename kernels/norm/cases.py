"""Launch configurations of the norm kernels, for the compile report."""

from collections.abc import Callable, Iterator

import torch

from megagpt.kernels.norm import kernel


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch on meta tensors) of configurations: row length, alignment, dtypes, RMS and residual.

    Every row length, alignment and pair of dtypes is combined with LayerNorm and a residual, which need the most
    registers. float16 (whose code differs from bfloat16's only in conversions) and other options have few cases.
    """
    lengths = [2**power for power in range(8, 16)]
    dtypes = [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
    for columns in [length - odd for length in lengths for odd in (0, 4, 1)]:
        for dtype, weights in dtypes:
            yield from _cases(columns, dtype, weights, False, True)
    for columns in (1024, 4096, 8192, 2**15):
        for rms, residual in ((False, False), (True, False), (True, True)):
            yield from _cases(columns, torch.bfloat16, torch.bfloat16, rms, residual)
        yield from _cases(columns, torch.bfloat16, torch.bfloat16, True, False, zero_centered=True)
        yield from _cases(columns, torch.float16, torch.float16, False, True)


def _cases(
    columns: int, dtype: torch.dtype, weights: torch.dtype, rms: bool, residual: bool, zero_centered: bool = False
) -> Iterator[tuple[str, Callable[[], None]]]:
    x = torch.empty(16384, columns, dtype=dtype, device="meta")
    weight = torch.empty(columns, dtype=weights, device="meta")
    statistics = torch.empty(16384, device="meta")
    added, bias, mean = x if residual else None, None if rms else weight, statistics[:0] if rms else statistics
    kinds = f"{dtype} {weights}".replace("torch.", "")
    name = f"{'rms' if rms else 'layer'} norm {kinds} {columns}{' residual' if residual else ''}"
    name += " zero-centered" if zero_centered else ""
    yield name, lambda: kernel.norm_forward(x, added, weight, bias, 1e-5, zero_centered)
    yield f"{name} backward", lambda: kernel.norm_backward(x, added, x, weight, bias, mean, statistics, zero_centered)
