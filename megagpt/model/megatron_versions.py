"""Differences between the supported versions of Megatron-Core."""

from dataclasses import fields
from typing import Any

from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

_SCOPE = "cuda_graph_modules"  # since 0.19; `cuda_graph_scope` before
NO_CUDA_GRAPHS: dict[str, Any] = {
    _SCOPE if _SCOPE in {field.name for field in fields(TransformerConfig)} else "cuda_graph_scope": []
}
"""Options of a `TransformerConfig` that turn Megatron-Core's own CUDA graphs off."""


def mark_sharded(weight: Tensor, dim: int, stride: int = 1) -> None:
    """Mark a weight as sharded over tensor-parallel ranks along `dim`; each rank's part has `stride` pieces.

    Megatron-Core 0.19 marks its own weights; earlier versions mark only weights that they initialise.
    """
    if not hasattr(weight, "tensor_model_parallel"):
        set_tensor_model_parallel_attributes(weight, True, dim, stride)
