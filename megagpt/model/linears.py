"""Megatron-Core's tensor-parallel linear layers, replaced by plain ones when there is only one rank."""

from collections.abc import Iterable

import torch.nn.functional as F
from megatron.core import tensor_parallel
from torch import Tensor, nn

from megagpt.model.megatron_versions import mark_sharded


class ColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """Megatron's layer; on a single tensor-parallel rank, a plain linear layer that fuses the bias into the product.

    With `separate_bias` the bias is always returned separately, for a kernel that adds it.
    """

    separate_bias = False

    def __init__(self, *args, stride: int = 1, **kwargs):
        super().__init__(*args, stride=stride, **kwargs)
        mark_sharded(self.weight, 0, stride)

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, in] -> [S, B, out / tp], and a bias that is not yet added or None."""
        if self.tp_group.size() > 1 or self.separate_bias:
            return super().forward(input_, weight, runtime_gather_output)
        return F.linear(input_, self.weight if weight is None else weight, self.bias), None


class RowParallelLinear(tensor_parallel.RowParallelLinear):
    """Megatron's layer; on a single tensor-parallel rank, a plain linear layer that fuses the bias into the product."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mark_sharded(self.weight, 1)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, B, in / tp] -> [S, B, out], and a bias that is not yet added or None."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return F.linear(input_, self.weight, self.bias), None


def transpose_storage(modules: Iterable[nn.Module]) -> None:
    """Store matrices on the CPU column by column; their shapes and values stay.

    Generation multiplies few rows at a time. The product of few rows with a matrix [out, in] is faster in this order.
    A model that is trained must keep its storage, where buffers of gradients have the same order.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim == 2 and parameter.device.type == "cpu":
                parameter.data = parameter.data.t().contiguous().t()
