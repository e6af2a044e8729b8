"""Counts the parameters of each pipeline stage; the counts equal the built model's exactly."""

from megagpt.config.schema import ModelConfig
from megagpt.plan.job import Job

NORMS = {"pre": 2, "post": 2, "both": 4}
"""Norms over hidden states per layer, by `norm_placement`, if each sublayer has its own norms."""


def layer_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of one transformer layer on each of `tensor` tensor-parallel ranks."""
    hidden = model.hidden_size
    biases = model.has_qkv_bias * qkv_width(model, tensor) + model.has_attention_output_bias * hidden
    biases += model.bias * (inner_width(model) // tensor + hidden)
    norms = layer_norms(model) * _norm_parameters(model, hidden)
    if model.qk_layernorm:
        heads = model.num_attention_heads // tensor + rank_groups(model, tensor)
        norms += _norm_parameters(model, model.head_size * (heads if model.qk_norm_scope == "all_heads" else 2))
    return matrix_parameters(model, tensor) + biases + norms


def layer_norms(model: ModelConfig) -> int:
    """Number of norms over hidden states in one layer."""
    return NORMS[model.norm_placement] - (model.parallel_block == "one_norm")


def matrix_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Elements of the matrices of one transformer layer on each of `tensor` tensor-parallel ranks."""
    heads = model.num_attention_heads * model.head_size
    return model.hidden_size * (
        qkv_width(model, tensor) + heads // tensor + (inner_width(model) + model.ffn_size) // tensor
    )


def qkv_width(model: ModelConfig, tensor: int = 1) -> int:
    """Columns of the projection to queries, keys and values on each of `tensor` ranks."""
    return (model.num_attention_heads + 2 * model.query_groups) * model.head_size // tensor


def rank_groups(model: ModelConfig, tensor: int) -> int:
    """Key and value heads per rank with `tensor` ranks; at least 1, since ranks share heads if there are fewer."""
    return max(model.query_groups // tensor, 1)


def inner_width(model: ModelConfig) -> int:
    """Columns of the projection into the feed-forward layer, on all ranks together."""
    return model.ffn_size * (2 if model.is_gated else 1)


def _norm_parameters(model: ModelConfig, width: int) -> int:
    return width * (2 if model.normalization == "layernorm" else 1)


def vocabulary_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Weights of the embedding, or of an output projection, on each of `tensor` ranks."""
    return model.padded_vocab_size // tensor * model.hidden_size


def head_parameters(model: ModelConfig, tensor: int = 1, shared: bool = False) -> int:
    """Parameters of the head on each of `tensor` ranks; the embedding head's one parameter is the temperature.

    shared: the projection's weights are tied to the embedding and not counted here.
    """
    if model.head != "tokens":
        return {"scalar": model.hidden_size + 1, "embedding": 1}[model.head]
    bias = model.padded_vocab_size // tensor if model.output_bias else 0
    return bias + (0 if shared else vocabulary_parameters(model, tensor))


def _embedding_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of the word embedding and of learned position embeddings."""
    positions = model.sequence_length * model.hidden_size if model.position_embedding == "learned" else 0
    return vocabulary_parameters(model, tensor) + positions


def chunk_parameters(job: Job, first: bool, last: bool) -> int:
    """Parameters of one chunk on a rank; the first chunk has the embedding, the last the final norm and the head."""
    model = job.config.model
    count = job.layers_per_chunk * layer_parameters(model, job.tensor_size)
    if first:
        count += _embedding_parameters(model, job.tensor_size)
    if last:
        count += _norm_parameters(model, model.hidden_size)
        count += head_parameters(model, job.tensor_size, shared=first and model.shares_embeddings)
        count -= model.head == "embedding" and not job.config.embed.learn_temperature
    return count


def stage_parameters(job: Job, stage: int) -> int:
    """Parameters of a pipeline stage on a rank, including the last stage's copy of tied embeddings."""
    first, last = stage == 0, stage == job.pipeline_size - 1
    ends = [(first and chunk == 0, last and chunk == job.virtual_size - 1) for chunk in range(job.virtual_size)]
    return sum(chunk_parameters(job, *end) for end in ends)


def total_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model; counts tied embeddings once, and the vocabulary's padding."""
    ends = _embedding_parameters(model) + head_parameters(model, shared=model.shares_embeddings)
    return model.num_layers * layer_parameters(model) + ends + _norm_parameters(model, model.hidden_size)
