"""Plans stage embed: two passes over a step's texts, and between them the loss over all pairs of the batch.

The first pass computes vectors without saving activations. The replicas then exchange all vectors, and each compares
its own pairs with all pairs (`megagpt.train.contrastive`). The second pass is a training pass that starts from the
gradients of the vectors. With one micro-batch per step there is only the second pass. All texts are assumed to have
the greatest length (`embed.max_tokens`).
"""

from dataclasses import dataclass, fields
from functools import cached_property

from megagpt.plan.devices import GIB, Device
from megagpt.plan.estimate import Estimate, estimate_training, message_seconds, recomputed_flops, ring_ranks
from megagpt.plan.job import FP32, Job
from megagpt.plan.memory import StageMemory, stage_memory
from megagpt.plan.work import Work

LOGIT_COPIES = 4
"""Tensors of a block's size that exist at once: all logits, the negatives' logits, and the gradients of both."""
VECTOR_COPIES = 4
"""Tensors of all vectors' size that exist at once: the vectors, the sum of their gradients, and a block's two terms."""
LOGIT_PASSES = 10
"""Number of reads and writes of each logit by product, mask and softmax, forward and backward."""


@dataclass(frozen=True)
class EmbedMemory(StageMemory):
    """Bytes on one rank at the fullest moment of a step."""

    contrast: float
    """Additional bytes for the comparison of all pairs. With two passes, only the excess over a pass's own memory."""


@dataclass(frozen=True)
class EmbedEstimate(Estimate):
    """The estimate for a run of stage embed."""

    @cached_property
    def hfu(self) -> float:
        """See `Estimate.hfu`; the first of two passes counts as recomputation."""
        again = 1 / 3 if passes(self.job) == 2 else 0.0
        return self.mfu * (recomputed_flops(self.job) + again)

    def to_dict(self) -> dict:
        """See `Estimate.to_dict`; also the sizes of the comparison."""
        return super().to_dict() | {
            "pairs_per_step": self.job.config.optim.global_batch_size,
            "texts_per_step": texts(self.job),
            "text_tokens": self.job.row_length,
            "passes": passes(self.job),
            "gathered_vectors_gib": vector_bytes(self.job) / GIB,
            "logits_gib": logit_bytes(self.job) / GIB,
            "contrast_gib": contrast_bytes(self.job) / GIB,
        }


def passes(job: Job) -> int:
    """Number of forward passes per step: one if a step is a single micro-batch, else two."""
    return 1 if job.micro_batches == 1 else 2


def texts(job: Job) -> int:
    """Number of texts in a step, over all replicas."""
    return job.rows // job.config.parallel.micro_batch_size * job.config.optim.global_batch_size


def widths(job: Job) -> tuple[int, ...]:
    """Sizes of the compared vectors: the whole vector and its prefixes (Matryoshka, arXiv 2205.13147)."""
    return (job.config.model.hidden_size, *job.config.embed.dimensions)


def vector_bytes(job: Job) -> float:
    """Bytes of the vectors of all replicas' texts, in fp32."""
    return FP32 * texts(job) * job.config.model.hidden_size


def logit_bytes(job: Job) -> float:
    """Bytes of one block of logits between queries and documents, in fp32."""
    from megagpt.train.contrastive import BLOCK  # here, because it imports PyTorch

    own = job.config.optim.global_batch_size // job.data_size
    rows = min(own, max(1, BLOCK // texts(job)))
    return FP32 * rows * texts(job)


def contrast_bytes(job: Job) -> float:
    """Bytes that a rank of the last pipeline stage needs while all pairs are compared."""
    beginnings = 2 * FP32 * texts(job) * sum(job.config.embed.dimensions)  # and their gradients
    own = 2 * vector_bytes(job) / job.data_size  # this replica's vectors, before and after sorting
    return own + VECTOR_COPIES * vector_bytes(job) + beginnings + LOGIT_COPIES * logit_bytes(job)


def embed_memory(job: Job, stage: int) -> EmbedMemory:
    """Memory of a rank of the pipeline stage `stage`."""
    held = stage_memory(job, stage)
    contrast = contrast_bytes(job) if stage == job.pipeline_size - 1 else 0.0
    if passes(job) == 2:
        waiting = vector_bytes(job) / job.data_size if contrast else 0.0  # gradients, kept for the second pass
        passing = held.activations + held.working + held.logits + held.communication
        contrast = waiting + max(0.0, contrast - passing - waiting)
    return EmbedMemory(**{field.name: getattr(held, field.name) for field in fields(held)}, contrast=contrast)


def estimate_embed(job: Job, device: Device, simulated: bool = True) -> EmbedEstimate:
    """Plan the run with the configuration of `job`. See `estimate`."""
    plan = estimate_training(job, device, simulated)
    parts = {"first_pass": _first_pass_seconds(job, device), "contrast": _contrast_seconds(job, device)}
    more = _sent_more(job, device)
    values = vars(plan) | {
        "memory": [embed_memory(job, stage) for stage in range(job.pipeline_size)],
        "parts": plan.parts | parts,
        "step_seconds": plan.step_seconds + sum(parts.values()),
        "sent": {link: size + more.get(link, 0.0) for link, size in plan.sent.items()},
    }
    return EmbedEstimate(**values)


def _first_pass_seconds(job: Job, device: Device) -> float:
    """Seconds of all micro-batches' forward passes through the pipeline, and of sending the vectors to all stages."""
    if passes(job) == 1:
        return 0.0
    work, (message, crossing) = Work(job, device), message_seconds(job, device)
    stages = [
        sum(work.chunk(stage, chunk)[0].total + message for chunk in range(job.virtual_size))
        for stage in range(job.pipeline_size)
    ]
    filling = (sum(stages) - max(stages)) / job.virtual_size
    broadcast = _broadcast_bytes(job) / device.link_rate(1, 2 if crossing else 1)
    return job.micro_batches * max(stages) + filling + broadcast


def _contrast_seconds(job: Job, device: Device) -> float:
    """Seconds of exchanging all vectors and their gradients, and of comparing a replica's vectors with all vectors."""
    logits = texts(job) * job.config.optim.global_batch_size // job.data_size
    rate = device.peak_flops(FP32) * device.matmul
    products = sum(6 * logits * width for width in widths(job)) / rate  # forward, and the gradients of both sides
    blocks = -(-FP32 * logits // logit_bytes(job)) * len(widths(job))
    moved = LOGIT_PASSES * FP32 * logits * len(widths(job)) + blocks * 2 * VECTOR_COPIES * vector_bytes(job)
    exchange = _exchanged_bytes(job) / device.link_rate(*ring_ranks(device, job.tensor_size, job.data_size))
    return products + moved / device.memory_rate + exchange


def _exchanged_bytes(job: Job) -> float:
    """Bytes that a rank sends in an all-gather of the vectors and an all-reduce of their gradients."""
    return 3 * vector_bytes(job) * (job.data_size - 1) / job.data_size


def _broadcast_bytes(job: Job) -> float:
    """Bytes that the last pipeline stage sends to the other stages: a replica's vectors."""
    return vector_bytes(job) / job.data_size if job.pipeline_size > 1 else 0.0


def _sent_more(job: Job, device: Device) -> dict[str, float]:
    """Bytes of the busiest rank in a step, without the second pass, by kind of link."""
    _, nodes = ring_ranks(device, job.tensor_size, job.data_size)
    found = {"inside a node": 0.0, "between nodes": 0.0}
    found["between nodes" if nodes > 1 else "inside a node"] += _exchanged_bytes(job)
    if passes(job) == 1:
        return found
    if job.tensor_size > 1:
        where = "inside a node" if job.tensor_size <= device.gpus_per_node else "between nodes"
        sent = Work(job, device).tensor_parallel_bytes() * job.layers_per_chunk * job.virtual_size
        found[where] += sent * job.micro_batches
    if job.pipeline_size > 1:
        where = "between nodes" if message_seconds(job, device)[1] else "inside a node"
        found[where] += job.message_bytes * job.virtual_size * job.micro_batches + _broadcast_bytes(job)
    return found
