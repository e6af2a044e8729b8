"""Launch configurations of the softmax kernels, for the compile report."""

from collections.abc import Callable, Iterator

import torch

from megagpt.kernels.softmax import kernel


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, launch on meta tensors) of every configuration: row length, alignment, mask and dtype.

    causal is not part of a configuration, because it is an argument of the compiled kernel. float16 has one case per
    kernel, because its code differs from bfloat16's only in conversions.
    """
    lengths = [2**power for power in range(7, 17)]
    for dtype in (torch.bfloat16, torch.float32):
        for keys in lengths + [length - 1 for length in lengths]:
            yield from _cases(keys, dtype)
    for keys in (1024, 2**16):
        yield from _cases(keys, torch.float16)


def _cases(keys: int, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    x = torch.empty(2, 16, 128, keys, dtype=dtype, device="meta")
    mask = torch.empty(2, 1, 128, keys, dtype=torch.bool, device="meta")
    name = f"softmax {str(dtype).removeprefix('torch.')} {keys}"
    yield name, lambda: kernel.scale_mask_softmax(x, 0.5, None, True)
    yield f"{name} masked", lambda: kernel.scale_mask_softmax(x, 0.5, mask, True)
    yield f"{name} backward", lambda: kernel.scale_mask_softmax_backward(x, x, 0.5, True)
