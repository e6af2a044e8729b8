"""Norms of the residual stream, of branches' outputs, and of queries and keys."""

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.kernels.norm import layer_norm, rms_norm
from megagpt.model.megatron_versions import mark_sharded


class LayerNorm(torch.nn.LayerNorm):
    """LayerNorm with weight and bias over the last dimension; if zero-centered, the factor is 1 + weight."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, backend: str, zero_centered: bool):
        super().__init__(hidden_size, eps)
        self.backend, self.zero_centered = backend, zero_centered
        _share_gradients(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return layer_norm(x, self.weight, self.bias, self.eps, zero_centered=self.zero_centered, backend=self.backend)


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm with weight over the last dimension; if zero-centered, the factor is 1 + weight."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, backend: str, zero_centered: bool):
        super().__init__(hidden_size, eps)
        self.backend, self.zero_centered = backend, zero_centered
        _share_gradients(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return rms_norm(x, self.weight, self.eps, zero_centered=self.zero_centered, backend=self.backend)


NORMS: dict[str, type[LayerNorm | RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def _share_gradients(norm: torch.nn.Module, config: TransformerConfig) -> None:
    """Under sequence parallelism each rank has its own tokens, so Megatron must sum the norms' gradients over ranks."""
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel


class AllHeadsNorm(torch.nn.Module):
    """A norm over all heads of a token together (OLMo 2, arXiv 2501.00656); the heads are divided over ranks."""

    def __init__(
        self, width: int, kind: str, eps: float, backend: str, zero_centered: bool, group: dist.ProcessGroup
    ) -> None:
        """width: heads on this rank x D. kind: a key of `NORMS`. group: the tensor-parallel ranks."""
        super().__init__()
        self.eps, self.backend, self.zero_centered, self.group = eps, backend, zero_centered, group
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.bias = torch.nn.Parameter(torch.zeros(width)) if kind == "layernorm" else None
        for parameter in self.parameters():
            mark_sharded(parameter, 0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., heads, D] -> [..., heads, D]."""
        flat, options = x.flatten(-2), {"zero_centered": self.zero_centered, "backend": self.backend}
        if self.group.size() > 1:
            y = self._across_ranks(flat.float(), self.weight.float() + self.zero_centered).to(x.dtype)
        elif self.bias is None:
            y = rms_norm(flat, self.weight, self.eps, **options)
        else:
            y = layer_norm(flat, self.weight, self.bias, self.eps, **options)
        return y.view(x.shape)

    def _across_ranks(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.bias is None:
            return x * (self._mean(x.square()) + self.eps).rsqrt() * weight
        x = x - self._mean(x)
        return x * (self._mean(x.square()) + self.eps).rsqrt() * weight + self.bias.float()

    def _mean(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., 1], the mean over all ranks. All ranks use it, so its gradient is summed over them too."""
        total = reduce_from_tensor_model_parallel_region(x.sum(-1, keepdim=True), group=self.group)
        return copy_to_tensor_model_parallel_region(total, group=self.group) / (x.shape[-1] * self.group.size())
