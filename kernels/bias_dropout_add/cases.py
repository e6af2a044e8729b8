"""Launches of bias + dropout + residual add that together compile every variant."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from megagpt.kernels.backend import DTYPES
from megagpt.kernels.bias_dropout_add import kernel


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Pairs of a name and a call that launches kernels on meta tensors."""
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        x, bias = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((4096, 4096), (4096,)))
        for title, vector in (("with bias", bias), ("without bias", None)):
            yield f"{title}, {name}", partial(kernel.bias_dropout_add, x, vector, x, seed, 0.1)
            yield f"{title}, backward, {name}", partial(kernel.bias_dropout_add_backward, x, vector, seed, 0.1)
            yield f"{title}, nothing dropped, {name}", partial(kernel.bias_dropout_add, x, vector, x, None, 0.0)
