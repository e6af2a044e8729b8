"""Self-attention of one layer: tensor-parallel projections, rotary positions and softmax attention."""

from contextlib import nullcontext

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import all_gather_last_dim_from_tensor_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.config.schema import KernelsConfig, ModelConfig
from megagpt.kernels.attention import attention, pytorch_backend
from megagpt.kernels.decode import decode_attention
from megagpt.model.linears import ColumnParallelLinear, RowParallelLinear
from megagpt.model.norms import NORMS, AllHeadsNorm
from megagpt.model.rotary import Rotation, kind_of, rotate
from megagpt.model.tree_pass import CachePass


class SelfAttention(torch.nn.Module):
    """Self-attention of one layer, over whole texts (`forward`) or a pass of a `KVCache` or `TokenPool` (`cached`).

    If there are fewer key-value groups than tensor-parallel ranks, the ranks still divide the rows of the projection.
    They gather its output, and each rank takes its own query heads with their key and value, which it shares with other
    ranks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        model: ModelConfig,
        kernels: KernelsConfig,
        **_,
    ) -> None:
        """layer_number: counted from 1, as Megatron counts."""
        super().__init__()
        self.config, self.layer_number, self.tp_group = config, layer_number, pg_collection.tp
        ranks, self.width, groups = self.tp_group.size(), model.head_size, model.query_groups
        self.groups = max(groups // ranks, 1)  # key-value groups on this rank
        self.queries = model.num_attention_heads // groups  # query heads of a group, over all ranks that share it
        self.sharers = max(ranks // groups, 1)  # ranks that share one group
        self.rotary_kind = kind_of(model, layer_number - 1)
        self.recomputes = config.recompute_granularity == "selective"
        self.linear_qkv = ColumnParallelLinear(
            config.hidden_size,
            (model.num_attention_heads + 2 * groups) * self.width,
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=model.has_qkv_bias,
            skip_bias_add=False,
            tp_group=self.tp_group,
        )
        self.q_layernorm = self._norm(model, kernels, self.groups * self.queries // self.sharers)
        self.k_layernorm = self._norm(model, kernels, self.groups)
        self.core_attention = CoreAttention(config, layer_number, model, kernels.attention)
        self.linear_proj = RowParallelLinear(
            model.num_attention_heads * self.width,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=model.has_attention_output_bias,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=self.tp_group,
        )

    def _norm(self, model: ModelConfig, kernels: KernelsConfig, heads: int) -> torch.nn.Module | None:
        if not model.qk_layernorm:
            return None
        options = (model.norm_epsilon, kernels.norm, model.zero_centered_norm)
        if model.qk_norm_scope == "all_heads":
            return AllHeadsNorm(heads * self.width, model.normalization, *options, self.tp_group)
        return NORMS[model.normalization](self.config, self.width, *options)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, rotations: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, H], or [S / tp, B, H] under sequence parallelism -> same shape, and a bias not yet added or None.

        attention_mask: see `CoreAttention`. rotations: see `Rotary.of_sequence`.
        """
        query, key, value = self._project(hidden, rotations)
        if self.recomputes and self.training:
            out = tensor_parallel.checkpoint(self.core_attention, False, query, key, value, attention_mask)
        else:
            out = self.core_attention(query, key, value, attention_mask)
        return self.linear_proj(out)

    def cached(self, hidden: Tensor, current: CachePass, rotations: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[T, H] of the pass -> [T, H], and a bias that is not yet added or None. rotations: see `Rotary.at`."""
        out = current.attend(self.layer_number, self.core_attention, *self._project(hidden, rotations))
        return self.linear_proj(out.flatten(1))

    def _project(self, hidden: Tensor, rotations: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[..., H] -> queries [..., heads, D], keys and values [..., groups, D] of this rank, normed and rotated."""
        mixed, _ = self.linear_qkv(hidden)
        if self.sharers > 1:
            mixed = all_gather_last_dim_from_tensor_parallel_region(mixed, group=self.tp_group)
            groups = mixed.unflatten(-1, (self.tp_group.size() // self.sharers, -1))
            mixed = groups.select(-2, self.tp_group.rank() // self.sharers)
        mixed = mixed.unflatten(-1, (self.groups, -1))  # each group: its queries, its key, its value
        query, key, value = mixed.split([self.queries * self.width, self.width, self.width], -1)
        if self.sharers > 1:
            query = query.chunk(self.sharers, -1)[self.tp_group.rank() % self.sharers]
        query = query.reshape(*query.shape[:-2], -1, self.width)
        if self.q_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        if rotations is not None:
            rotation: Rotation = rotations[self.rotary_kind].unbind()
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value


class CoreAttention(torch.nn.Module):
    """Softmax attention of one layer, dense or banded as the model's pattern says."""

    def __init__(self, config: TransformerConfig, layer_number: int, model: ModelConfig, backend: str) -> None:
        """layer_number: counted from 1, as Megatron counts."""
        super().__init__()
        self.config = config
        self.window = model.window(layer_number - 1)
        self.scores = {"scale": model.attention_scale, "softcap": model.attention_softcap}
        self.backend = backend
        self.takes_masks = backend in ("sdpa", "flash_attn")  # the flash-attn package supports neither kind of padding

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[Sq, B, heads, D], [Sk, B, groups, D] twice -> [Sq, B, heads x D].

        attention_mask: None for causal attention; int [N + 1], cumulative lengths of packed documents, for causal
        attention within each document; or bool [B, 1, Sq, Sk], the complete mask, in which True hides a key.
        """
        q, k, v = (part.transpose(0, 1) for part in (query, key, value))
        options = _masking(attention_mask)
        dropout = self.config.attention_dropout if self.training else 0.0
        # Tensor-parallel ranks hold different heads, so they must drop differently.
        fork = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if fork else nullcontext():
            out = attention(
                q, k, v, window=self.window, dropout=dropout, backend=self.backend, **self.scores, **options
            )
        return out.transpose(0, 1).reshape(query.shape[0], query.shape[1], -1)

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, first_key: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """[B, Sq, heads, D], [B, Sk, groups, D] twice -> [B, Sq, heads, D]; the last query is at the last key.

        first_key: int32 [B], the first visible key of each row; None hides no key. mask: bool [B, 1, Sq, Sk], True
        hides a key; the mask is complete and includes the window of a banded layer.
        """
        if mask is not None:  # only PyTorch's attention supports masks
            backend = pytorch_backend(self.scores["softcap"])
            return attention(q, k, v, causal=False, mask=mask, backend=backend, **self.scores)
        if self.backend == "triton" and q.shape[1] == 1:
            return decode_attention(q, k, v, self.window, first_key=first_key, backend="triton", **self.scores)
        return attention(q, k, v, window=self.window, first_key=first_key, backend=self.backend, **self.scores)


def _masking(attention_mask: Tensor | None) -> dict[str, Tensor | bool]:
    """Arguments of `attention` for the mask that `CoreAttention.forward` gets."""
    if attention_mask is None:
        return {}
    if attention_mask.dtype == torch.bool:
        return {"causal": False, "mask": attention_mask}
    return {"cu_seqlens": attention_mask}
