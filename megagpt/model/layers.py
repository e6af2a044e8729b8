"""The transformer layer, assembled from Megatron-Core's parallel modules with our norms and attention."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention as MegatronSelfAttention
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP as MegatronMLP
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer as MegatronTransformerLayer
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megagpt.config.schema import KernelsConfig, ModelConfig
from megagpt.kernels.activation import bias_gelu, swiglu
from megagpt.kernels.attention import attention
from megagpt.kernels.bias_dropout_add import bias_dropout_add
from megagpt.kernels.decode import decode_attention
from megagpt.kernels.norm import layer_norm, rms_norm
from megagpt.model.kv_cache import Rotation, rotate
from megagpt.model.megatron_versions import mark_sharded
from megagpt.model.tree_pass import CachePass


def block_spec(
    model: ModelConfig, kernels: KernelsConfig, config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """Layers and final norm of this pipeline rank's chunk `vp_stage`; `kernels` as of `choose_kernels`."""
    norm = ModuleSpec(
        module=LayerNorm if model.normalization == "layernorm" else RMSNorm, params={"backend": kernels.norm}
    )
    residual_add = get_bias_dropout_add if kernels.bias_dropout_add == "torch" else fused_bias_dropout_add
    head_norm = norm if model.qk_layernorm else None
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=partial(CoreAttention, model=model, backend=kernels.attention),
                    linear_proj=RowParallelLinear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=residual_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(module=MLP, params={"backend": kernels.activation}),
            mlp_bda=residual_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)


class LayerNorm(torch.nn.LayerNorm):
    """LayerNorm with weight and bias over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, backend: str):
        super().__init__(hidden_size, eps)
        self.backend = backend
        _share_gradients(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return layer_norm(x, self.weight, self.bias, self.eps, backend=self.backend)


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm with weight over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, backend: str):
        super().__init__(hidden_size, eps)
        self.backend = backend
        _share_gradients(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return rms_norm(x, self.weight, self.eps, backend=self.backend)


def _share_gradients(norm: torch.nn.Module, config: TransformerConfig) -> None:
    """Under sequence parallelism each rank norms its own tokens, so Megatron must sum the gradients over ranks."""
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel


class ColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """Megatron's layer; on one tensor-parallel rank a plain linear that adds the bias inside the matrix product.

    With `separate_bias` the bias is always left to be added, for a kernel that does it on the way.
    """

    separate_bias = False

    def __init__(self, *args, stride: int = 1, **kwargs):
        super().__init__(*args, stride=stride, **kwargs)
        mark_sharded(self.weight, 0, stride)

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Output [S, B, out / tp] and the bias that is still to be added, if any."""
        if self.tp_group.size() > 1 or self.separate_bias:
            return super().forward(input_, weight, runtime_gather_output)
        return F.linear(input_, self.weight if weight is None else weight, self.bias), None


class RowParallelLinear(tensor_parallel.RowParallelLinear):
    """Megatron's layer; on one tensor-parallel rank a plain linear that adds the bias inside the matrix product."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        mark_sharded(self.weight, 1)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output [S, B, out] and the bias that is still to be added, if any."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return F.linear(input_, self.weight, self.bias), None


class MLP(MegatronMLP):
    """Feed-forward layer: GELU (tanh approximation) or SwiGLU between two linears."""

    def __init__(self, config: TransformerConfig, backend: str, **_):
        super().__init__(
            config,
            MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        self.backend = backend
        self.linear_fc1.separate_bias = backend == "triton"

    def forward(self, hidden_states: Tensor, **_) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] -> [S, B, H] and the bias that is still to be added, if any."""
        inner, bias = self.linear_fc1(hidden_states)
        if self.config.gated_linear_unit:
            inner = swiglu(inner, bias, backend=self.backend)
        elif bias is not None:
            inner = bias_gelu(inner, bias, backend=self.backend)
        else:
            inner = F.gelu(inner, approximate="tanh")
        return self.linear_fc2(inner)


def fused_bias_dropout_add(training: bool, fused: bool) -> Callable:
    """As Megatron's get_bias_dropout_add: a function of ((x, bias or None), residual, probability), in one kernel."""

    def add(x_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, probability: float) -> Tensor:
        return bias_dropout_add(*x_with_bias, residual, probability, training, backend="triton")

    return add


class SelfAttention(MegatronSelfAttention):
    """Megatron's self-attention, and the same over a pass of a `KVCache` or a `TokenPool`."""

    def cached(self, hidden: Tensor, current: CachePass, rotation: Rotation | None) -> tuple[Tensor, Tensor | None]:
        """[T, H] of the pass -> [T, H] and the bias that is still to be added, if any."""
        mixed, _ = self.linear_qkv(hidden)
        groups, width = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        mixed = mixed.view(len(hidden), groups, -1, width)  # the queries of a group, its key, its value
        query, key, value = mixed[:, :, :-2].reshape(len(hidden), -1, width), mixed[:, :, -2], mixed[:, :, -1]
        if self.q_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        out = current.attend(self.layer_number, self.core_attention, query, key, value)
        return self.linear_proj(out.flatten(1))


class TransformerLayer(MegatronTransformerLayer):
    """Megatron's layer, and the same over a pass of a `KVCache` or a `TokenPool`, without dropout or recompute."""

    def cached(self, hidden: Tensor, current: CachePass, rotation: Rotation | None) -> Tensor:
        """[T, H] of the pass -> [T, H]."""
        hidden = _add(hidden, *self.self_attention.cached(self.input_layernorm(hidden), current, rotation))
        return _add(hidden, *self.mlp(self.pre_mlp_layernorm(hidden)))


def _add(residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    return residual + (x if bias is None else x + bias)


class CoreAttention(torch.nn.Module):
    """Softmax attention of one layer, dense or banded as the model's pattern says."""

    def __init__(self, *, config: TransformerConfig, layer_number: int, model: ModelConfig, backend: str, **_):
        super().__init__()
        self.config = config
        self.window = model.window(layer_number - 1)  # Megatron counts layers from 1
        self.backend = backend
        self.takes_masks = backend in ("sdpa", "flash_attn")  # the flash-attn package cannot take padding either way

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_) -> Tensor:
        """[Sq, B, heads, D], [Sk, B, groups, D] twice -> [Sq, B, heads x D].

        attention_mask: None is causal, and so are [N + 1] integers, cumulative lengths of packed documents. bool
        [B, 1, Sq, Sk] is complete in itself, True hides a key.
        """
        q, k, v = (part.transpose(0, 1) for part in (query, key, value))
        options = _masking(attention_mask)
        dropout = self.config.attention_dropout if self.training else 0.0
        # Tensor-parallel ranks hold different heads, so they must drop differently.
        fork = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if fork else nullcontext():
            out = attention(q, k, v, window=self.window, dropout=dropout, backend=self.backend, **options)
        return out.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """[B, Sq, heads, D], [B, Sk, groups, D] twice -> [B, Sq, heads, D]; the last query stands at the last key.

        first_key: int32 [B], keys of a row before it are hidden; None hides none. mask: bool [B, 1, Sq, Sk], True hides
        a key; it is complete in itself, with the band of a banded layer.
        """
        if mask is not None:  # which PyTorch's alone takes
            return attention(q, k, v, causal=False, mask=mask, backend="sdpa")
        if self.backend == "triton" and q.shape[1] == 1:
            return decode_attention(q, k, v, self.window, first_key=first_key, backend="triton")
        return attention(q, k, v, window=self.window, first_key=first_key, backend=self.backend)


def _masking(attention_mask: Tensor | None) -> dict[str, Tensor | bool]:
    """Arguments of `attention` for a mask of `CoreAttention.forward`."""
    if attention_mask is None:
        return {}
    if attention_mask.dtype == torch.bool:
        return {"causal": False, "mask": attention_mask}
    return {"cu_seqlens": attention_mask}
