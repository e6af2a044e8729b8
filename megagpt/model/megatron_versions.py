"""What Megatron-Core's versions name or do differently."""

from dataclasses import fields
from typing import Any

from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

_SCOPE = "cuda_graph_modules"  # since 0.19; `cuda_graph_scope` before
NO_CUDA_GRAPHS: dict[str, Any] = {
    _SCOPE if _SCOPE in {field.name for field in fields(TransformerConfig)} else "cuda_graph_scope": []
}
"""Settings of a `TransformerConfig` without CUDA graphs of Megatron-Core's own."""


def mark_sharded(weight: Tensor, dim: int, stride: int = 1) -> None:
    """Say that tensor-parallel ranks hold parts of a weight along `dim`, each of `stride` pieces.

    0.19 says so of its own weights, earlier versions only of those that they give their first values.
    """
    if not hasattr(weight, "tensor_model_parallel"):
        set_tensor_model_parallel_attributes(weight, True, dim, stride)
