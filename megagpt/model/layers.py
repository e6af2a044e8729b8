"""The transformer layer, assembled from Megatron-Core's parallel modules with our norms and attention."""

from collections.abc import Callable

import torch
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP as MegatronMLP
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer as MegatronTransformerLayer
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megagpt.config.schema import KernelsConfig, ModelConfig
from megagpt.kernels.activation import activation
from megagpt.kernels.bias_dropout_add import bias_dropout_add
from megagpt.model.attention import SelfAttention
from megagpt.model.linears import ColumnParallelLinear, RowParallelLinear
from megagpt.model.norms import NORMS
from megagpt.model.tree_pass import CachePass

WithBias = tuple[Tensor, Tensor | None]
"""The output of a branch, and a bias that is not yet added to it, or None."""


def block_spec(
    model: ModelConfig, kernels: KernelsConfig, config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """Spec of the layers and the final norm of this pipeline rank's chunk `vp_stage`.

    kernels: result of `choose_kernels`.
    """
    norm = ModuleSpec(
        module=NORMS[model.normalization],
        params={"backend": kernels.norm, "zero_centered": model.zero_centered_norm},
    )
    residual_add = get_bias_dropout_add if kernels.bias_dropout_add == "torch" else fused_bias_dropout_add
    norms_input = model.norm_placement != "post"
    layer = ModuleSpec(
        module=TransformerLayer,
        params={
            "parallel_block": model.parallel_block,
            "output_norm": IdentityOp if model.norm_placement == "pre" else norm,
        },
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm if norms_input else IdentityOp,
            self_attention=ModuleSpec(module=SelfAttention, params={"model": model, "kernels": kernels}),
            self_attn_bda=residual_add,
            pre_mlp_layernorm=norm if norms_input and model.parallel_block != "one_norm" else IdentityOp,
            mlp=ModuleSpec(module=MLP, params={"activation": model.activation, "backend": kernels.activation}),
            mlp_bda=residual_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)


class MLP(MegatronMLP):
    """Feed-forward layer: a linear layer, an activation (gated or not), and a second linear layer."""

    def __init__(self, config: TransformerConfig, activation: str, backend: str, **_):
        super().__init__(
            config,
            MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        self.activation, self.backend = activation, backend
        self.linear_fc1.separate_bias = backend == "triton"

    def forward(self, hidden_states: Tensor, **_) -> WithBias:
        """[S, B, H] -> [S, B, H], and a bias that is not yet added or None."""
        inner, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(activation(inner, bias, self.activation, self.backend))


def fused_bias_dropout_add(training: bool, fused: bool) -> Callable:
    """Like Megatron's get_bias_dropout_add, in one kernel: a function of ((x, bias or None), residual, probability)."""

    def add(x_with_bias: WithBias, residual: Tensor, probability: float) -> Tensor:
        return bias_dropout_add(*x_with_bias, residual, probability, training, backend="triton")

    return add


class TransformerLayer(MegatronTransformerLayer):
    """Megatron's layer with norms on the inputs, the outputs or both, and with sequential or parallel branches.

    `post_attention_layernorm` and `post_mlp_layernorm` are the norms of the branches' outputs.
    """

    def __init__(self, config: TransformerConfig, *args, parallel_block: str, output_norm: ModuleSpec | type, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.parallel_block = parallel_block
        size = {"config": config, "hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
        self.post_attention_layernorm = build_module(output_norm, **size)
        self.post_mlp_layernorm = build_module(output_norm, **size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        **_,
    ) -> tuple[Tensor, None]:
        """[S, B, H] -> [S, B, H], and None in place of the context that Megatron's layers return.

        rotary_pos_emb: see `Rotary.of_sequence`.
        """
        add = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
        return self._through(
            hidden_states,
            lambda x: self.self_attention(x, attention_mask, rotary_pos_emb),
            lambda branch, residual: add(branch, residual, self.hidden_dropout),
        ), None

    def cached(self, hidden: Tensor, current: CachePass, rotations: Tensor | None) -> Tensor:
        """[T, H] of a pass of a `KVCache` or a `TokenPool` -> [T, H], without dropout or recompute."""
        return self._through(hidden, lambda x: self.self_attention.cached(x, current, rotations), _add)

    def _through(
        self,
        hidden: Tensor,
        attend: Callable[[Tensor], WithBias],
        add: Callable[[WithBias, Tensor], Tensor],
    ) -> Tensor:
        """The layer, given functions for attention and for adding a branch to the residual stream."""
        normed = self.input_layernorm(hidden)
        attended = _normed(attend(normed), self.post_attention_layernorm)
        if self.parallel_block == "none":
            hidden = add(attended, hidden)
            return add(_normed(self.mlp(self.pre_mlp_layernorm(hidden)), self.post_mlp_layernorm), hidden)
        if self.parallel_block == "two_norms":
            normed = self.pre_mlp_layernorm(hidden)
        return add(_normed(self.mlp(normed), self.post_mlp_layernorm), add(attended, hidden))


def _normed(branch: WithBias, norm: torch.nn.Module) -> WithBias:
    if isinstance(norm, IdentityOp):
        return branch
    return norm(_sum(*branch)), None


def _add(branch: WithBias, residual: Tensor) -> Tensor:
    return residual + _sum(*branch)


def _sum(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
