"""From a `Config` to this rank's part of Megatron-Core's GPTModel."""

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megagpt.config.schema import Config
from megagpt.kernels.cross_entropy import cross_entropy
from megagpt.model.heads import EmbeddingHead, ScalarHead
from megagpt.model.kernels import choose_kernels
from megagpt.model.layers import block_spec
from megagpt.model.losses import projected_cross_entropy
from megagpt.model.parameters import initialize
from megagpt.model.tree_pass import CachePass, TreePass

NORMALIZATION = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
POSITION_EMBEDDING = {"learned": "learned_absolute", "rope": "rope"}


def transformer_config(config: Config) -> TransformerConfig:
    """Megatron-Core's settings for `config`. The engine adds those of gradients and schedules."""
    model, parallel = config.model, config.parallel
    bf16 = config.optim.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    full = parallel.recompute == "full"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn_size,
        normalization=NORMALIZATION[model.normalization],
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.activation == "swiglu",
        add_bias_linear=model.bias,
        qk_layernorm=model.qk_layernorm,
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
        # Under ZeRO-3 a GPU need not hold a whole model, not even at first.
        use_cpu_initialization=config.parallel.zero_stage == 3 or not torch.cuda.is_available(),
        perform_initialization=False,  # `initialize` does it, alike in every layout
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        persist_layer_norm=False,
        cuda_graph_scope=[],
    )


class GPT(GPTModel):
    """One pipeline rank's chunk of the model: Megatron-Core's GPTModel with our layers, initial values and loss.

    `model(tokens, position_ids, attention_mask, labels=labels)` takes int64 tokens, positions and labels [B, S] and
    returns losses, float32 [B, S], on the last pipeline stage and hidden states [S, B, H] on the others; without
    labels the last stage returns logits [B, S, padded vocabulary / tp], whose columns from vocab_size on mean nothing.
    With `model.head=scalar` it returns one value for every token, float32 [B, S], whatever the labels. With
    `model.head=embedding` labels, int64 [B], are the places of the texts' last tokens, and it returns a vector for
    every text, float32 [B, H], see `EmbeddingHead`.
    attention_mask: see `CoreAttention`. Rotary positions count from the first token of the sequence and ignore
    position_ids; they matter only as differences.
    """

    def __init__(
        self, config: Config, pre_process: bool = True, post_process: bool = True, vp_stage: int | None = None
    ):
        """Give this rank's chunk its initial values, in the precision of `config.optim`.

        pre_process: it holds the embedding. post_process: it holds the final norm and the head. vp_stage: index of the
        chunk where the pipeline is interleaved. Needs the groups of `megagpt.parallel.launch.initialize`.
        """
        model = config.model
        settings = transformer_config(config)
        kernels = choose_kernels(config)
        super().__init__(
            settings,
            block_spec(model, kernels, settings, vp_stage),
            vocab_size=model.padded_vocab_size,
            max_sequence_length=model.sequence_length,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=model.shares_embeddings,
            position_embedding_type=POSITION_EMBEDDING[model.position_embedding],
            rotary_base=model.rope_base,
            vp_stage=vp_stage,
        )
        self.real_vocab_size, self.head = model.vocab_size, model.head
        self.cross_entropy_backend = kernels.cross_entropy
        self.fuse_output_projection = kernels.fuse_output_projection
        if pre_process:
            set_tensor_model_parallel_attributes(self.embedding.word_embeddings.weight, True, 0, 1)
        if post_process and model.head == "scalar":
            del self.output_layer
            self.scalar_head = ScalarHead(settings, self.pg_collection.tp)
        elif post_process and model.head == "embedding":
            del self.output_layer
            self.embedding_head = EmbeddingHead(config.embed, settings, self.pg_collection.tp)
        elif post_process and self.output_layer.weight is not None:
            set_tensor_model_parallel_attributes(self.output_layer.weight, True, 0, 1)
        self.to(settings.params_dtype)
        initialize(self, config)

    def forward(self, input_ids: Tensor, *args, cache_pass: CachePass | None = None, **kwargs) -> Tensor:
        """See the class; with a `cache_pass`, that pass's tokens [T] -> see `_cached`."""
        if cache_pass is not None:
            return self._cached(input_ids, cache_pass)
        return super().forward(input_ids, *args, **kwargs)

    def vocabulary_logits(self, hidden: Tensor, gather: bool = False) -> Tensor:
        """[n, H] behind the final norm -> [n, padded vocabulary / tp], or with `gather` [n, padded vocabulary]."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        return self.output_layer(hidden, weight=weight, runtime_gather_output=gather)[0]

    def _cached(self, tokens: Tensor, current: CachePass) -> Tensor:
        """Hidden states [T, H]; on the last pipeline stage logits of the tokens asked for [n, padded vocabulary].

        Of a `TreePass`, the last stage returns the hidden states behind the final norm, [n, H], that the pass asks for.

        Megatron's modules in Megatron's order, without the work that its forward does at every layer for training: at
        one token a sequence that would take as long as the arithmetic.
        """
        hidden = self.decoder.input_tensor
        if self.pre_process:
            hidden = self.embedding(tokens[None], current.positions[None]).squeeze(1)
        rotation = None
        if self.position_embedding_type == "rope":
            rotation = current.rotation(self.rotary_pos_emb(self.max_sequence_length), hidden.dtype)
        for layer in self.decoder.layers:
            hidden = layer.cached(hidden, current, rotation)
        if not self.post_process:
            return hidden
        hidden = self.decoder.final_layernorm(current.last(hidden))
        return hidden if isinstance(current, TreePass) else self.vocabulary_logits(hidden, gather=True)

    def _postprocess(self, hidden_states: Tensor, *, labels: Tensor | None, **others) -> Tensor:
        if self.post_process and self.head == "scalar":
            return self.scalar_head(hidden_states)
        if self.post_process and self.head == "embedding":
            return self.embedding_head(hidden_states, labels)
        if not (self.fuse_output_projection and self.post_process) or labels is None:
            return super()._postprocess(hidden_states=hidden_states, labels=labels, **others)
        tied = self.share_embeddings_and_output_weights
        return projected_cross_entropy(
            hidden_states,
            self.shared_embedding_or_output_weight() if tied else self.output_layer.weight,
            labels,
            self.real_vocab_size,
            self.pg_collection.tp,
            self.config.sequence_parallel,
            self.cross_entropy_backend,
        )

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy of every token, float32 [B, S], computed in float32 whatever the logits' dtype.

        labels: int64 [B, S]. logits: [S, B, V / tp], this rank's share of the vocabulary, which are consumed: where the
        back end can, their memory becomes the gradient's, because they are the largest tensor of a training step.
        """
        return cross_entropy(
            logits,
            labels.t(),
            self.real_vocab_size,
            self.pg_collection.tp,
            inplace=True,
            backend=self.cross_entropy_backend,
        ).t()
