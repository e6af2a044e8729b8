"""The transformer layer, assembled from Megatron-Core's parallel modules with our norms and attention."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention as MegatronSelfAttention
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP as MegatronMLP
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megagpt.config.schema import KernelsConfig, ModelConfig
from megagpt.kernels.activation import bias_gelu, swiglu
from megagpt.kernels.attention import attention
from megagpt.kernels.bias_dropout_add import bias_dropout_add
from megagpt.kernels.decode import decode_attention
from megagpt.kernels.norm import layer_norm, rms_norm
from megagpt.model.kv_cache import KVCache


def block_spec(
    model: ModelConfig, kernels: KernelsConfig, config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """Layers and final norm of this pipeline rank's chunk `vp_stage`; `kernels` as of `choose_kernels`."""
    norm = ModuleSpec(
        module=LayerNorm if model.normalization == "layernorm" else RMSNorm, params={"backend": kernels.norm}
    )
    residual_add = get_bias_dropout_add if kernels.dropout_add == "torch" else fused_bias_dropout_add
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
        set_tensor_model_parallel_attributes(self.weight, True, 0, stride)

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
        set_tensor_model_parallel_attributes(self.weight, True, 1, 1)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output [S, B, out] and the bias that is still to be added, if any."""
        if self.tp_group.size() > 1:
            return super().forward(input_)
        return F.linear(input_, self.weight, self.bias), None


class MLP(MegatronMLP):
    """Feed-forward layer: GELU (tanh approximation) or SwiGLU between two linears."""

    def __init__(self, config: TransformerConfig, backend: str):
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
    """Megatron's self-attention; with a `KVCache` it rotates a key once, at the position its sequence gives it."""

    def _adjust_key_value_for_inference(
        self,
        inference_context: object,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_pos_emb: tuple[Tensor, Tensor] | None,
        *args,
        **kwargs,
    ) -> tuple:
        if not isinstance(inference_context, KVCache):
            return super()._adjust_key_value_for_inference(
                inference_context, query, key, value, rotary_pos_emb, *args, **kwargs
            )
        if rotary_pos_emb is not None:
            query, key = (inference_context.rotate(part, rotary_pos_emb[0]) for part in (query, key))
        key, value = inference_context.append(self.layer_number, key, value)
        return query, key, value, None, self.attn_mask_type, None


class CoreAttention(torch.nn.Module):
    """Softmax attention of one layer, dense or banded as the model's pattern says."""

    def __init__(self, *, config: TransformerConfig, layer_number: int, model: ModelConfig, backend: str, **_):
        super().__init__()
        self.config = config
        self.window = model.window(layer_number - 1)  # Megatron counts layers from 1
        self.backend = backend

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_) -> Tensor:
        """[Sq, B, heads, D], [Sk, B, groups, D] twice -> [Sq, B, heads x D].

        attention_mask: None is causal, and so is an integer tensor: [N + 1] cumulative lengths of packed documents, or
        [B, 1] numbers of padding tokens on the left. bool [B, 1, Sq, Sk] is complete in itself, True hides a key.
        """
        q, k, v = (part.transpose(0, 1) for part in (query, key, value))
        options = _masking(attention_mask)
        if self.backend == "triton" and query.shape[0] == 1 and not torch.is_grad_enabled() and "mask" not in options:
            out = decode_attention(q, k, v, self.window, first_key=options.get("first_key"), backend="triton")
            return out.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)
        dropout = self.config.attention_dropout if self.training else 0.0
        # Prompts padded on the left, which the flash-attn package cannot take, go through PyTorch.
        backend = "sdpa" if self.backend == "flash_attn" and "first_key" in options else self.backend
        # Tensor-parallel ranks hold different heads, so they must drop differently.
        fork = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if fork else nullcontext():
            out = attention(q, k, v, window=self.window, dropout=dropout, backend=backend, **options)
        return out.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)


def _masking(attention_mask: Tensor | None) -> dict[str, Tensor | bool]:
    """Arguments of `attention` for a mask of `CoreAttention.forward`."""
    if attention_mask is None:
        return {}
    if attention_mask.dtype == torch.bool:
        return {"causal": False, "mask": attention_mask}
    return {"cu_seqlens": attention_mask} if attention_mask.dim() == 1 else {"first_key": attention_mask[:, 0]}


def document_lengths(document_ids: Tensor) -> Tensor:
    """Attention mask, int32 [N + 1], of packed documents: their cumulative lengths over the rows of the batch.

    document_ids: int64 [B, S], the number of every token's document.
    """
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return torch.cat((begins.flatten().nonzero()[:, 0], begins.new_tensor([begins.numel()], dtype=torch.int64))).int()
