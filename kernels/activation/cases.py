"""Launches of the activations that together compile every variant."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from megagpt.kernels.activation import kernel
from megagpt.kernels.activation.op import KINDS
from megagpt.kernels.activation.reference import GATED
from megagpt.kernels.backend import DTYPES


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Pairs of a name and a call that launches kernels on meta tensors."""
    for dtype in DTYPES:
        for kind in KINDS:
            shapes = ((4096, 4096), (4096, 2048 if kind in GATED else 4096), (4096,))
            x, y, bias = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
            for name, given in (("", None), (" with bias", bias)):
                name = f"{kind}{name} {str(dtype).removeprefix('torch.')}"
                yield name, partial(kernel.activation, x, given, kind)
                yield f"{name} backward", partial(kernel.activation_backward, y, x, given, kind)
