"""How many parameters each pipeline stage holds, exactly as the built model has them."""

from megagpt.config.schema import ModelConfig
from megagpt.plan.job import Job


def layer_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of one transformer layer on each of `tensor` tensor-parallel ranks."""
    hidden = model.hidden_size
    bias = int(model.bias)
    norm = hidden * (2 if model.normalization == "layernorm" else 1)
    head_norms = 2 * model.head_size * norm // hidden if model.qk_layernorm else 0
    biases = bias * (_qkv(model) + _inner(model)) // tensor + 2 * hidden * bias
    return matrix_parameters(model, tensor) + biases + 2 * norm + head_norms


def matrix_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Elements of the matrices of one transformer layer on each of `tensor` tensor-parallel ranks."""
    heads = model.num_attention_heads * model.head_size
    return model.hidden_size * (_qkv(model) + _inner(model) + heads + model.ffn_size) // tensor


def _qkv(model: ModelConfig) -> int:
    return (model.num_attention_heads + 2 * model.query_groups) * model.head_size


def _inner(model: ModelConfig) -> int:
    return model.ffn_size * (2 if model.activation == "swiglu" else 1)


def vocabulary_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Weights of the embedding, or of an output projection, on each of `tensor` ranks."""
    return model.padded_vocab_size // tensor * model.hidden_size


def head_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Weights of the output projection or of another head on each of `tensor` ranks: an embedding's temperature."""
    others = {"scalar": model.hidden_size + 1, "embedding": 1}
    return vocabulary_parameters(model, tensor) if model.head == "tokens" else others[model.head]


def chunk_parameters(job: Job, first: bool, last: bool) -> int:
    """Parameters that a rank holds of one chunk; the first has the embedding, the last the norm and the head."""
    model = job.config.model
    count = job.layers_per_chunk * layer_parameters(model, job.tensor_size)
    if first:
        count += vocabulary_parameters(model, job.tensor_size)
        count += model.sequence_length * model.hidden_size if model.position_embedding == "learned" else 0
    if last:
        count += model.hidden_size * (2 if model.normalization == "layernorm" else 1)
        count += 0 if first and model.shares_embeddings else head_parameters(model, job.tensor_size)
        count -= model.head == "embedding" and not job.config.embed.learn_temperature
    return count


def stage_parameters(job: Job, stage: int) -> int:
    """Parameters that a rank of a pipeline stage holds, the copy of tied embeddings on the last one included."""
    first, last = stage == 0, stage == job.pipeline_size - 1
    ends = [(first and chunk == 0, last and chunk == job.virtual_size - 1) for chunk in range(job.virtual_size)]
    return sum(chunk_parameters(job, *end) for end in ends)


def total_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model, tied embeddings counted once, the padding of the vocabulary included."""
    norm = model.hidden_size * (2 if model.normalization == "layernorm" else 1)
    positions = model.sequence_length * model.hidden_size if model.position_embedding == "learned" else 0
    ends = vocabulary_parameters(model) + (0 if model.shares_embeddings else head_parameters(model))
    return model.num_layers * layer_parameters(model) + ends + positions + norm
