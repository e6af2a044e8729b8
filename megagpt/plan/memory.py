"""Memory of a rank of every pipeline stage, by what it is for.

Activations are what the backward pass needs (Korthikanti et al., arXiv 2205.05198, section 4), counted tensor by tensor
as the project's layers save them. With unfused attention and dropout that is the paper's s b h (10 + 24 / t + 5 a s /
(h t)) a layer, and its other ppo_math with sequence parallelism and recomputation; fused attention keeps the logarithm
of its sums instead of the probabilities, and no dropout keeps no masks.
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

MASK = 1  # byte of an element of a dropout mask


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one rank of a pipeline stage at the fullest moment of a step; their sum must fit."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Tensors saved for backward passes, of all micro-batches in flight."""
    working: float
    """Tensors that exist only during a layer's backward pass, a recomputed layer included."""
    logits: float
    """The last stage's logits, their gradient and that of the projection."""
    communication: float
    """Inputs gathered over tensor-parallel ranks, messages to other stages, buckets of gradients."""

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class HostMemory:
    """Bytes that a rank keeps outside its GPU."""

    optimizer: float
    parameters: float


def stage_memory(job: Job, stage: int) -> StageMemory:
    """Memory of a rank of the pipeline stage `stage`."""
    parameters = stage_parameters(job, stage)
    last = stage == job.pipeline_size - 1
    working, logits = _layer_working(job), logits_bytes(job) if last else 0.0
    weights, gradients, optimizer = _model_states(job, parameters)
    if job.config.optim.optimizer == "muon":  # one moment of a matrix, where Adam has two
        layers = job.layers_per_chunk * job.virtual_size
        spared = FP32 * layers * matrix_parameters(job.config.model, job.tensor_size)
        optimizer -= spared / (job.data_size if job.config.parallel.zero_stage >= 1 else 1)
    return StageMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=_stage_activations(job, stage),
        working=max(0.0, working - logits),  # a layer's backward pass begins when the logits' has ended
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
    # Megatron-Core updates fp32 weights in place; DeepSpeed has masters of its own.
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
    """Bytes that one layer saves for the backward pass of one micro-batch; `recompute` overrides the configured."""
    model, tokens, size = job.config.model, job.tokens, job.itemsize
    recompute = recompute or job.config.parallel.recompute
    stream = tokens * model.hidden_size / job.sequence_size  # elements of the residual stream
    if recompute == "full":
        return size * stream
    tensor, heads = job.tensor_size, model.num_attention_heads * model.head_size
    keys = rank_groups(model, tensor) * model.head_size
    # Ranks that share a group gather queries, keys and values, of which the values stay a part.
    mixed = qkv_width(model, 1 if model.query_groups < tensor else tensor)
    # Our kernel drops by a seed, from which the backward pass knows the mask.
    masks = 2 * MASK * stream if model.hidden_dropout and job.config.kernels.bias_dropout_add == "torch" else 0.0
    streams = size * _kept_streams(model) * stream + layer_norms(model) * _norm_statistics(job)
    linear_inputs = size * tokens * (heads + model.ffn_size) / tensor
    qkv = size * tokens * mixed
    rope, grouped = model.position_embedding == "rope", model.query_groups < model.num_attention_heads
    if rope or model.qk_layernorm:  # new queries and keys beside the projection's
        qkv += size * tokens * (heads / tensor + keys)
    if model.qk_layernorm and model.qk_norm_scope == "all_heads" and tensor > 1:  # normed in fp32, over all ranks
        qkv += 2 * FP32 * tokens * (heads / tensor + keys)
    if grouped and (model.qk_layernorm or not rope):  # queries of all groups, put together
        qkv += size * tokens * heads / tensor
    if job.rows > 1 and tensor == 1 and not job.unfused_attention:
        qkv += size * tokens * heads  # attention's output, which PyTorch's product copies transposed
    # What the activation saves; ReLU saves its output, which counts among the linear inputs.
    inner = 0.0 if model.activation == "relu" else size * tokens * inner_width(model) / tensor
    return streams + linear_inputs + qkv + inner + masks + attention_bytes(job, recompute)


def _kept_streams(model: ModelConfig) -> int:
    """Tensors of the residual stream's shape that a layer saves: inputs of its norms, and of its two projections out of
    the stream. A norm behind a sublayer saves that one's output; parallel sublayers share the layer's input."""
    shared = {"none": 0, "two_norms": 1, "one_norm": 2}[model.parallel_block]
    return 4 - shared + (2 if model.norm_placement == "both" else 0)


def attention_bytes(job: Job, recompute: str) -> float:
    """Bytes that the attention of one layer saves beside its queries, keys, values and output."""
    model = job.config.model
    queries = job.tokens * model.num_attention_heads / job.tensor_size
    if not job.unfused_attention:
        return FP32 * queries  # the logarithm of the sum of exponentials
    if recompute == "selective":
        return 0.0
    element = job.itemsize + (job.itemsize + MASK if model.attention_dropout else 0)  # probabilities, dropped, mask
    element += job.itemsize if model.attention_softcap else 0  # the hyperbolic tangent of scores
    return element * queries * job.row_length


def _norm_statistics(job: Job) -> float:
    """Bytes of one norm's deviations, and means where it has them."""
    each = 2 if job.config.model.normalization == "layernorm" else 1
    return each * FP32 * job.tokens / job.sequence_size


def _stage_activations(job: Job, stage: int) -> float:
    """Of all micro-batches in flight."""
    model, tokens, size = job.config.model, job.tokens, job.itemsize
    stream = tokens * model.hidden_size / job.sequence_size
    chunks = job.in_flight(stage)
    activations = chunks * job.layers_per_chunk * layer_activations(job)
    if job.pipeline_size > 1:
        outputs = chunks - (stage == job.pipeline_size - 1)  # which stay until their gradients come
        activations += outputs * size * stream
    if stage == 0:
        per_chunk = MASK * stream if model.hidden_dropout else 0.0
        whole = job.in_flight(stage) if job.virtual_size == 1 else min(job.micro_batches, 2 * job.pipeline_size)
        activations += whole * (per_chunk + 2 * 8 * tokens)  # int64 tokens and positions
    if stage == job.pipeline_size - 1:
        kept = (
            1 if model.head == "embedding" else 2
        )  # inputs of the final norm and, unless a few states do, of the head
        activations += size * kept * stream + _norm_statistics(job)
    return activations


def saved_logits(job: Job) -> float:
    """Bytes of the last stage's logits between its forward and its backward pass."""
    if job.config.kernels.fuse_output_projection or job.config.model.head != "tokens":
        return 0.0
    size = FP32 if job.config.kernels.cross_entropy == "torch" else job.itemsize
    size += job.itemsize if job.config.model.logit_softcap else 0  # their hyperbolic tangent
    return job.tokens * job.config.model.padded_vocab_size / job.tensor_size * size


def logits_bytes(job: Job) -> float:
    """Bytes of the logits at their fullest: with their gradient, and those that they give the projection.

    Our kernel writes the gradient over the logits; with fused projection only a slice of the vocabulary exists. A
    scalar head has none, but its input and that one's gradient in fp32; an embedding head the gradient of its input.
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
    """Bytes that one layer's backward pass needs for a moment, at most in its feed-forward half."""
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
        buffers += 2 * stream / job.sequence_size  # what comes from both neighbours
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
