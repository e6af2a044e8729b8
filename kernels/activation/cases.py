"""Launches of the activations that between them compile everything that can be chosen."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from megagpt.kernels.activation import kernel
from megagpt.kernels.backend import DTYPES


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Pairs of a name and a call that launches kernels on meta tensors."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        x, y, bias = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((4096, 4096), (4096, 2048), (4096,)))
        yield f"bias_gelu {name}", partial(kernel.bias_gelu, x, bias)
        yield f"bias_gelu backward {name}", partial(kernel.bias_gelu_backward, x, x, bias)
        yield f"swiglu {name}", partial(kernel.swiglu, x)
        yield f"swiglu backward {name}", partial(kernel.swiglu_backward, y, x)
        yield f"swiglu with bias {name}", partial(kernel.swiglu, x, bias)
        yield f"swiglu with bias backward {name}", partial(kernel.swiglu_backward, y, x, bias)
