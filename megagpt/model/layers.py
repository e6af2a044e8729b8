"""The transformer layer, assembled from Megatron-Core's parallel modules with our norms and attention."""

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

from megagpt.config.schema import ModelConfig
from megagpt.kernels.attention import attention
from megagpt.model.kv_cache import KVCache


def block_spec(model: ModelConfig, config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Layers and final norm of this pipeline rank's chunk `vp_stage`."""
    norm = LayerNorm if model.normalization == "layernorm" else RMSNorm
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
                    core_attention=partial(CoreAttention, model=model),
                    linear_proj=RowParallelLinear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=MLP,
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)


class LayerNorm(torch.nn.LayerNorm):
    """LayerNorm with weight and bias over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(hidden_size, eps)
        _share_gradients(self, config)


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm with weight over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(hidden_size, eps)
        _share_gradients(self, config)


def _share_gradients(norm: torch.nn.Module, config: TransformerConfig) -> None:
    """Under sequence parallelism each rank norms its own tokens, so Megatron must sum the gradients over ranks."""
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel


class ColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """Megatron's layer; on one tensor-parallel rank a plain linear that adds the bias inside the matrix product."""

    def __init__(self, *args, stride: int = 1, **kwargs):
        super().__init__(*args, stride=stride, **kwargs)
        set_tensor_model_parallel_attributes(self.weight, True, 0, stride)

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Output [S, B, out / tp] and the bias that is still to be added, if any."""
        if self.tp_group.size() > 1:
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

    def __init__(self, config: TransformerConfig):
        super().__init__(
            config,
            MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )

    def forward(self, hidden_states: Tensor, **_) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] -> [S, B, H] and the bias that is still to be added, if any."""
        inner, bias = self.linear_fc1(hidden_states)
        if bias is not None:
            inner = inner + bias
        if self.config.gated_linear_unit:
            gate, inner = inner.chunk(2, -1)
            inner = F.silu(gate) * inner
        else:
            inner = F.gelu(inner, approximate="tanh")
        return self.linear_fc2(inner)


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

    def __init__(self, *, config: TransformerConfig, layer_number: int, model: ModelConfig, **_):
        super().__init__()
        self.config = config
        self.window = model.window(layer_number - 1)  # Megatron counts layers from 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_) -> Tensor:
        """[Sq, B, heads, D], [Sk, B, groups, D] twice -> [Sq, B, heads x D].

        attention_mask: None is causal; otherwise bool [B, 1, Sq, Sk], complete in itself, True hides a key.
        """
        dropout = self.config.attention_dropout if self.training else 0.0
        # Tensor-parallel ranks hold different heads, so they must drop differently.
        fork = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if fork else nullcontext():
            out = attention(
                query.transpose(0, 1),
                key.transpose(0, 1),
                value.transpose(0, 1),
                causal=attention_mask is None,
                window=self.window,
                mask=attention_mask,
                dropout=dropout,
            )
        return out.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)


def document_mask(document_ids: Tensor) -> Tensor:
    """Attention mask, bool [B, 1, S, S], of packed documents: True hides later tokens and tokens of other documents.

    document_ids: int64 [B, S], the number of every token's document.
    """
    later = torch.ones(document_ids.shape[1], document_ids.shape[1], dtype=torch.bool, device=document_ids.device)
    return (later.triu(1) | (document_ids[:, :, None] != document_ids[:, None, :])).unsqueeze(1)
