"""Estimates the memory of a rank of every pipeline stage, by purpose.

Activations are the tensors saved for the backward pass (Korthikanti et al., arXiv 2205.05198, section 4), counted one
by one as the project's layers save them. With unfused attention and dropout the sum is the paper's s b h (10 + 24 / t +
5 a s / (h t)) bytes per layer, and its other formulas with sequence parallelism and recomputation. Fused attention
saves the logarithm of the softmax denominator instead of the probabilities; without dropout there are no masks.
"""

from dataclasses import dataclass, fields

from megagpt.config.schema import ModelConfig
from megagpt.plan.job import BF16, FP32, Job
from megagpt.plan.parameters import (
    inner_width,
    layer_norms,
    matrix_parameters,
    qkv_width,
    rank_groups,
    stage_parameters,
    vocabulary_parameters,
)

MASK = 1  # bytes per element of a dropout mask


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one rank of a pipeline stage at the peak of a step; their sum must fit."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Tensors saved for the backward passes of all micro-batches in flight."""
    working: float
    """Tensors that exist only during a layer's backward pass, including a recomputed layer."""
    logits: float
    """The last stage's logits, their gradient, and the projection's gradient."""
    communication: float
    """Inputs gathered over tensor-parallel ranks, messages to other stages, buckets of gradients."""

    @property
    def total(self) -> float:
        """Total bytes."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class HostMemory:
    """Bytes that a rank keeps outside its GPU memory."""

    optimizer: float
    parameters: float


def stage_memory(job: Job, stage: int) -> StageMemory:
    """Memory of a rank of pipeline stage `stage`, at the peak of a step."""
    parameters = stage_parameters(job, stage)
    last = stage == job.pipeline_size - 1
    working, logits = _layer_working(job), logits_bytes(job) if last else 0.0
    weights, gradients, optimizer = _model_states(job, parameters)
    if job.config.optim.optimizer == "muon":  # one moment per matrix; Adam has two
        layers = job.layers_per_chunk * job.virtual_size
        spared = FP32 * layers * matrix_parameters(job.config.model, job.tensor_size)
        optimizer -= spared / (job.data_size if job.config.parallel.zero_stage >= 1 else 1)
    return StageMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=_stage_activations(job, stage),
        working=max(0.0, working - logits),  # a layer's backward pass begins after the logits are freed
        logits=logits,
        communication=_communication(job, parameters),
    )


def host_memory(job: Job, stage: int) -> HostMemory:
    """Bytes that a rank of the pipeline stage `stage` offloads to the host's memory or to disk (DeepSpeed)."""
    parallel, share = job.config.parallel, stage_parameters(job, stage) / job.data_size
    return HostMemory(
        optimizer=16 * share if parallel.offload_optimizer != "none" else 0.0,  # master, moments and gradient
        parameters=job.itemsize * share if parallel.offload_parameters != "none" else 0.0,
    )


def _model_states(job: Job, parameters: int) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer state (Rajbhandari et al., arXiv 1910.02054, section 3)."""
    parallel, bf16 = job.config.parallel, job.itemsize == BF16
    stage, deepspeed = parallel.zero_stage, parallel.engine == "deepspeed"
    # With fp32 weights Megatron-Core needs no master weights; DeepSpeed always has them.
    moments_and_master = FP32 * (3 if bf16 or deepspeed else 2)
    weights = job.itemsize / (job.data_size if stage == 3 else 1)
    gradients = (FP32 + (BF16 if deepspeed and bf16 and stage == 1 else 0)) / (job.data_size if stage >= 2 else 1)
    optimizer = moments_and_master / (job.data_size if stage >= 1 else 1)
    if parallel.offload_optimizer != "none":
        optimizer, gradients = 0.0, gradients if stage == 1 else 0.0
    if parallel.offload_parameters != "none":
        weights = 0.0
    return weights * parameters, gradients * parameters, optimizer * parameters


def layer_activations(job: Job, recompute: str | None = None) -> float:
    """Bytes that one layer saves for the backward pass of one micro-batch.

    recompute: replaces `parallel.recompute`.
    """
    model, tokens, size = job.config.model, job.tokens, job.itemsize
    recompute = recompute or job.config.parallel.recompute
    stream = tokens * model.hidden_size / job.sequence_size  # elements of the residual stream
    if recompute == "full":
        return size * stream
    tensor, heads = job.tensor_size, model.num_attention_heads * model.head_size
    keys = rank_groups(model, tensor) * model.head_size
    # Ranks that share a key/value head gather queries, keys and values; the saved values are a view of the whole.
    mixed = qkv_width(model, 1 if model.query_groups < tensor else tensor)
    # Our dropout kernel saves no mask: the backward pass generates it again from the seed.
    masks = 2 * MASK * stream if model.hidden_dropout and job.config.kernels.bias_dropout_add == "torch" else 0.0
    streams = size * _kept_streams(model) * stream + layer_norms(model) * _norm_statistics(job)
    linear_inputs = size * tokens * (heads + model.ffn_size) / tensor
    qkv = size * tokens * mixed
    rope, grouped = model.position_embedding == "rope", model.query_groups < model.num_attention_heads
    if rope or model.qk_layernorm:  # new queries and keys, in addition to the projection's output
        qkv += size * tokens * (heads / tensor + keys)
    if model.qk_layernorm and model.qk_norm_scope == "all_heads" and tensor > 1:  # normed in fp32, over all ranks
        qkv += 2 * FP32 * tokens * (heads / tensor + keys)
    if grouped and (model.qk_layernorm or not rope):  # a contiguous copy of the queries of all groups
        qkv += size * tokens * heads / tensor
    if job.rows > 1 and tensor == 1 and not job.unfused_attention:
        qkv += size * tokens * heads  # PyTorch's matrix product saves a transposed copy of attention's output
    # Saved by the activation function. ReLU saves its output, which is already counted among the linear inputs.
    inner = 0.0 if model.activation == "relu" else size * tokens * inner_width(model) / tensor
    return streams + linear_inputs + qkv + inner + masks + attention_bytes(job, recompute)


def _kept_streams(model: ModelConfig) -> int:
    """Number of saved tensors per layer with the residual stream's shape: inputs of the norms and of the QKV and FFN
    projections. A norm after a sublayer saves the sublayer's output; parallel sublayers share the layer's input."""
    shared = {"none": 0, "two_norms": 1, "one_norm": 2}[model.parallel_block]
    return 4 - shared + (2 if model.norm_placement == "both" else 0)


def attention_bytes(job: Job, recompute: str) -> float:
    """Bytes that the attention of one layer saves in addition to queries, keys, values and output."""
    model = job.config.model
    queries = job.tokens * model.num_attention_heads / job.tensor_size
    if not job.unfused_attention:
        return FP32 * queries  # the log-sum-exp of the scores
    if recompute == "selective":
        return 0.0
    element = job.itemsize + (job.itemsize + MASK if model.attention_dropout else 0)  # probabilities, dropped, mask
    element += job.itemsize if model.attention_softcap else 0  # the hyperbolic tangent of scores
    return element * queries * job.row_length


def _norm_statistics(job: Job) -> float:
    """Bytes that one norm saves: reciprocal standard deviations and, for LayerNorm, means."""
    each = 2 if job.config.model.normalization == "layernorm" else 1
    return each * FP32 * job.tokens / job.sequence_size


def _stage_activations(job: Job, stage: int) -> float:
    """Bytes of activations of all micro-batches in flight."""
    model, tokens, size = job.config.model, job.tokens, job.itemsize
    stream = tokens * model.hidden_size / job.sequence_size
    chunks = job.in_flight(stage)
    activations = chunks * job.layers_per_chunk * layer_activations(job)
    if job.pipeline_size > 1:
        outputs = chunks - (stage == job.pipeline_size - 1)  # outputs to the next stage, kept until the backward pass
        activations += outputs * size * stream
    if stage == 0:
        per_chunk = MASK * stream if model.hidden_dropout else 0.0
        whole = job.in_flight(stage) if job.virtual_size == 1 else min(job.micro_batches, 2 * job.pipeline_size)
        activations += whole * (per_chunk + 2 * 8 * tokens)  # int64 tokens and positions
    if stage == job.pipeline_size - 1:
        # The inputs of the final norm and of the head; an embedding head reads only one state per text.
        kept = 1 if model.head == "embedding" else 2
        activations += size * kept * stream + _norm_statistics(job)
    return activations


def saved_logits(job: Job) -> float:
    """Bytes of the last stage's logits, kept from its forward to its backward pass."""
    if job.config.kernels.fuse_output_projection or job.config.model.head != "tokens":
        return 0.0
    size = FP32 if job.config.kernels.cross_entropy == "torch" else job.itemsize
    size += job.itemsize if job.config.model.logit_softcap else 0  # their hyperbolic tangent
    return job.tokens * job.config.model.padded_vocab_size / job.tensor_size * size


def logits_bytes(job: Job) -> float:
    """Peak bytes of the logits, their gradient, and the projection's gradients.

    Our kernel overwrites the logits with their gradient; with a fused projection only a slice of the vocabulary exists.
    A scalar head has no logits, but its input and the input's gradient in fp32; an embedding head has the gradient of
    its input.
    """
    model, size = job.config.model, job.itemsize
    if model.head == "embedding":
        return size * job.tokens * model.hidden_size / job.sequence_size
    if model.head == "scalar":
        return 2 * FP32 * job.tokens * model.hidden_size / job.sequence_size
    rows = vocabulary_parameters(model, job.tensor_size) / model.hidden_size
    projection = vocabulary_parameters(model, job.tensor_size) * size + 2 * size * job.tokens * model.hidden_size
    if job.config.kernels.fuse_output_projection:
        return job.tokens * rows / 16 * size + projection + FP32 * job.tokens * model.hidden_size
    each = FP32 + size if job.config.kernels.cross_entropy == "torch" else size
    each += size if model.logit_softcap else 0  # their hyperbolic tangent
    return job.tokens * rows * each + projection


def _layer_working(job: Job) -> float:
    """Peak bytes of temporary tensors in one layer's backward pass, which is reached in the feed-forward network."""
    model, tokens, size = job.config.model, job.tokens, job.itemsize
    inner = tokens * inner_width(model) / job.tensor_size
    stream = tokens * model.hidden_size
    weight = model.hidden_size * max(inner / tokens, model.ffn_size / job.tensor_size)
    working = size * (inner + 2 * stream / job.sequence_size + weight)
    if job.config.parallel.recompute == "full":
        working += layer_activations(job, "none")
    elif job.config.parallel.recompute == "selective" and job.unfused_attention:
        working = max(working, attention_bytes(job, "none"))
    return working


def _communication(job: Job, parameters: int) -> float:
    model, size, parallel = job.config.model, job.itemsize, job.config.parallel
    stream = size * job.tokens * model.hidden_size
    buffers = 2 * stream if job.sequence_size > 1 else 0.0  # a layer's whole input, and its gradient
    if job.pipeline_size > 1:
        buffers += 2 * stream / job.sequence_size  # messages from both neighbours
    if parallel.engine == "deepspeed":
        bucket = _bucket(parameters)
        buffers += FP32 * bucket * (2 if parallel.overlaps_reduction else 1)
        if parallel.zero_stage == 3:
            buffers += size * min(parameters, bucket + 2 * _largest_layer(job, model))
    return buffers


def _largest_layer(job: Job, model: ModelConfig) -> float:
    return max(model.hidden_size * model.ffn_size / job.tensor_size, vocabulary_parameters(model, job.tensor_size))


def _bucket(parameters: int) -> float:
    """Elements of DeepSpeed's buckets, as the engine sets them."""
    from megagpt.parallel.zero import BUCKETS, LARGEST_BUCKET

    return min(LARGEST_BUCKET, parameters // BUCKETS)
