"""Builds this rank's part of a GPT from a `Config`, with modules that all supported Megatron-Core versions have."""

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.kernels.cross_entropy import cross_entropy
from megagpt.model.heads import EmbeddingHead, ScalarHead
from megagpt.model.kernels import choose_kernels
from megagpt.model.layers import block_spec
from megagpt.model.losses import projected_cross_entropy
from megagpt.model.megatron_versions import NO_CUDA_GRAPHS, mark_sharded
from megagpt.model.parameters import initialize
from megagpt.model.rotary import Rotary
from megagpt.model.tree_pass import CachePass, TreePass

NORMALIZATION = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
POSITION_EMBEDDING = {"learned": "learned_absolute", "rope": "rope"}


def transformer_config(config: Config) -> TransformerConfig:
    """Megatron-Core's settings for `config`. The engine adds the settings of gradients and schedules."""
    model, parallel = config.model, config.parallel
    bf16 = config.optim.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    full = parallel.recompute == "full"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        ffn_hidden_size=model.ffn_size,
        normalization=NORMALIZATION[model.normalization],
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.is_gated,
        add_bias_linear=model.bias,
        # This makes Megatron sum the gradients of head norms over tensor-parallel ranks, which all hold the same norms.
        qk_layernorm=model.qk_layernorm and model.qk_norm_scope == "head",
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        tensor_model_parallel_size=parallel.tensor_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_model_parallel_size=parallel.pipeline_parallel_size,
        virtual_pipeline_model_parallel_size=(
            parallel.virtual_pipeline_size if parallel.virtual_pipeline_size > 1 else None
        ),
        recompute_granularity=None if parallel.recompute == "none" else parallel.recompute,
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
        bf16=bf16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # With ZeRO stage 3 the whole model may not fit on a GPU, so it is built on the CPU.
        use_cpu_initialization=config.parallel.zero_stage == 3 or not torch.cuda.is_available(),
        perform_initialization=False,  # `initialize` does it, with the same values in every layout
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        persist_layer_norm=False,
        **NO_CUDA_GRAPHS,
    )


class GPT(LanguageModule):
    """One pipeline rank's chunk of the model: Megatron-Core's block with our layers, heads, initial values and loss.

    `model(tokens, position_ids, attention_mask, labels=labels)` takes int64 tokens, positions and labels [B, S]. On the
    last pipeline stage it returns losses, float32 [B, S]; on the other stages, hidden states [S, B, H]. Without labels
    the last stage returns logits [B, S, padded vocabulary / tp]; columns from vocab_size on are padding.
    With `model.head=scalar` the last stage returns one value per token, float32 [B, S], and ignores labels. With
    `model.head=embedding` labels, int64 [B], are the places of the texts' last tokens, and the last stage returns one
    vector per text, float32 [B, H], see `EmbeddingHead`.
    attention_mask: see `CoreAttention`. Rotary positions count from the first token of the sequence and ignore
    position_ids, because only differences of positions have an effect.
    """

    def __init__(
        self, config: Config, pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None
    ):
        """Build this rank's chunk with initial values, in the precision of `config.optim`.

        pre_process: whether the chunk has the embedding. post_process: whether it has the final norm and the head.
        vp_stage: index of the chunk on its rank if the pipeline is interleaved. Call
        `megagpt.parallel.launch.initialize` first, which makes the process groups.
        """
        settings = transformer_config(config)
        super().__init__(settings)
        model, kernels = config.model, choose_kernels(config)
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.model_type = ModelType.encoder_or_decoder  # Megatron-Core's schedules read it
        self.share_embeddings_and_output_weights = model.shares_embeddings
        self.real_vocab_size, self.head, self.logit_softcap = model.vocab_size, model.head, model.logit_softcap
        self.cross_entropy_backend = kernels.cross_entropy
        self.fuse_output_projection = kernels.fuse_output_projection
        if pre_process:
            self.embedding = LanguageModelEmbedding(
                settings,
                model.padded_vocab_size,
                model.sequence_length,
                POSITION_EMBEDDING[model.position_embedding],
                tp_group=self.tp_group,
            )
            mark_sharded(self.embedding.word_embeddings.weight, 0)
            if model.embedding_scale is not None:
                # Gemma was trained with a factor rounded to the weights' precision.
                scale = torch.tensor(model.embedding_scale, dtype=settings.params_dtype).item()
                self.embedding.word_embeddings.register_forward_hook(lambda module, inputs, words: words * scale)
        self.rotary = Rotary(model) if model.position_embedding == "rope" else None
        spec = block_spec(model, kernels, settings, vp_stage)
        self.decoder = TransformerBlock(
            settings, spec, True, pre_process, post_process, self.pg_collection, vp_stage=vp_stage
        )
        if post_process:
            self._add_head(config)
        if self.head == "tokens" and (pre_process or post_process):
            self.setup_embeddings_and_output_layer()
        self.to(settings.params_dtype)
        initialize(self, config)

    def _add_head(self, config: Config) -> None:
        if self.head == "scalar":
            self.scalar_head = ScalarHead(self.config, self.tp_group)
        elif self.head == "embedding":
            self.embedding_head = EmbeddingHead(config.embed, self.config, self.tp_group)
        else:
            tied_here = self.pre_process and self.share_embeddings_and_output_weights
            self.output_layer = ColumnParallelLinear(
                self.config.hidden_size,
                config.model.padded_vocab_size,
                config=self.config,
                init_method=self.config.init_method,
                bias=config.model.output_bias,
                gather_output=False,
                skip_weight_param_allocation=tied_here,
                tp_group=self.tp_group,
            )
            if not tied_here:
                mark_sharded(self.output_layer.weight, 0)

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """Give the next forward pass the previous stage's hidden states: [S, B, H], or a list of one such tensor."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache_pass: CachePass | None = None,
    ) -> Tensor:
        """See the class. With a `cache_pass`, input_ids are the pass's tokens [T], and `_cached` gives the result."""
        if cache_pass is not None:
            return self._cached(input_ids, cache_pass)
        hidden = self.embedding(input_ids, position_ids) if self.pre_process else None
        rotations = None
        if self.rotary is not None:
            rotations = self.rotary.of_sequence(
                input_ids.shape[1], self.decoder.input_tensor if hidden is None else hidden
            )
        hidden = self.decoder(hidden, attention_mask, rotary_pos_emb=rotations)
        return self._output(hidden, labels) if self.post_process else hidden

    def shared_embedding_or_output_weight(self) -> Tensor:
        """The embedding's weight on the first stage, the output layer's on the last; Megatron-Core keeps both equal."""
        return self.embedding.word_embeddings.weight if self.pre_process else self.output_layer.weight

    def vocabulary_logits(self, hidden: Tensor, gather: bool = False) -> Tensor:
        """[n, H] after the final norm -> [n, padded vocabulary / tp], or with `gather` [n, padded vocabulary]."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits = self.output_layer(hidden, weight=weight, runtime_gather_output=gather)[0]
        return logits if self.logit_softcap is None else (logits / self.logit_softcap).tanh() * self.logit_softcap

    def _cached(self, tokens: Tensor, current: CachePass) -> Tensor:
        """Hidden states [T, H]; on the last pipeline stage, logits [n, padded vocabulary] of the tokens asked for.

        For a `TreePass` the last stage returns the hidden states of these tokens after the final norm, [n, H].

        This calls Megatron's modules in the same order as Megatron's forward, but without the work that it does in
        every layer for training. With one token per sequence that work would take as long as the arithmetic.
        """
        hidden = self.decoder.input_tensor
        if self.pre_process:
            hidden = self.embedding(tokens[None], current.positions[None]).squeeze(1)
        rotations = self.rotary.at(current.positions, hidden) if self.rotary is not None else None
        for layer in self.decoder.layers:
            hidden = layer.cached(hidden, current, rotations)
        if not self.post_process:
            return hidden
        hidden = self.decoder.final_layernorm(current.last(hidden))
        return hidden if isinstance(current, TreePass) else self.vocabulary_logits(hidden, gather=True)

    def _output(self, hidden: Tensor, labels: Tensor | None) -> Tensor:
        """Hidden states after the final norm [S, B, H] -> output of the last stage, see the class."""
        if self.head == "scalar":
            return self.scalar_head(hidden)
        if self.head == "embedding":
            return self.embedding_head(hidden, labels)
        tied = self.share_embeddings_and_output_weights
        if labels is not None and self.fuse_output_projection:
            return projected_cross_entropy(
                hidden,
                self.shared_embedding_or_output_weight() if tied else self.output_layer.weight,
                labels,
                self.real_vocab_size,
                self.tp_group,
                self.config.sequence_parallel,
                self.cross_entropy_backend,
            )
        logits = self.vocabulary_logits(hidden)
        if labels is None:
            return logits.transpose(0, 1).contiguous()
        return self.compute_language_model_loss(labels, logits)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy of every token, float32 [B, S], computed in float32 for logits of any dtype.

        labels: int64 [B, S]. logits: [S, B, V / tp], this rank's share of the vocabulary. Do not use them afterwards:
        they are the largest tensor of a training step, so the back end may overwrite them with their gradient.
        """
        return cross_entropy(
            logits,
            labels.t(),
            self.real_vocab_size,
            self.pg_collection.tp,
            inplace=True,
            backend=self.cross_entropy_backend,
        ).t()
