"""The plan of stage embed: two passes over a step's texts, and between them the loss over all pairs of the batch.

The first pass computes vectors and keeps nothing else. The replicas then exchange all vectors, and each compares its
own pairs with everyone's (`megagpt.train.contrastive`). The second pass is one of training, with known gradients. A
replica whose pairs are one micro-batch has that pass alone. Texts are as long as they may be (`embed.max_tokens`).
"""

from dataclasses import dataclass, fields
from functools import cached_property

from megagpt.plan.devices import GIB, Device
from megagpt.plan.estimate import Estimate, estimate_training, message_seconds, recomputed_flops, ring_ranks
from megagpt.plan.job import FP32, Job
from megagpt.plan.memory import StageMemory, stage_memory
from megagpt.plan.work import Work

LOGIT_COPIES = 4
"""Tensors of a block of logits that exist at once: all logits, those of negatives alone, and the gradients of both."""
VECTOR_COPIES = 4
"""The same of all vectors: themselves, the sum of their gradients, and two parts of it that a block adds."""
LOGIT_PASSES = 10
"""How often each logit is read or written: by the product, the mask and the softmax, forward and backward."""


@dataclass(frozen=True)
class EmbedMemory(StageMemory):
    """Bytes on one rank at the fullest moment of a step."""

    contrast: float
    """What the comparison of all pairs needs besides: between two passes only beyond what a pass needs."""


@dataclass(frozen=True)
class EmbedEstimate(Estimate):
    """The estimate for a run of stage embed."""

    @cached_property
    def hfu(self) -> float:
        """See `Estimate.hfu`; the first pass is done again too."""
        again = 1 / 3 if passes(self.job) == 2 else 0.0
        return self.mfu * (recomputed_flops(self.job) + again)

    def to_dict(self) -> dict:
        """See `Estimate.to_dict`; also what a step compares."""
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
    """Forward passes of a step's texts: one where the loss comes from a micro-batch's own output."""
    return 1 if job.micro_batches == 1 else 2


def texts(job: Job) -> int:
    """Texts of a step, over all replicas."""
    return job.rows // job.config.parallel.micro_batch_size * job.config.optim.global_batch_size


def widths(job: Job) -> tuple[int, ...]:
    """Sizes of the vectors that are compared: the whole one, and its beginnings (Matryoshka)."""
    return (job.config.model.hidden_size, *job.config.embed.dimensions)


def vector_bytes(job: Job) -> float:
    """Bytes of the vectors of all replicas' texts, in fp32."""
    return FP32 * texts(job) * job.config.model.hidden_size


def logit_bytes(job: Job) -> float:
    """Bytes of the logits that exist at a time, of queries and of documents."""
    from megagpt.train.contrastive import BLOCK  # which imports PyTorch

    own = job.config.optim.global_batch_size // job.data_size
    rows = min(own, max(1, BLOCK // texts(job)))
    return FP32 * rows * texts(job)


def contrast_bytes(job: Job) -> float:
    """Bytes that a rank of the last pipeline stage needs while all pairs are compared."""
    beginnings = 2 * FP32 * texts(job) * sum(job.config.embed.dimensions)  # and their gradients
    own = 2 * vector_bytes(job) / job.data_size  # as they came, and put in order
    return own + VECTOR_COPIES * vector_bytes(job) + beginnings + LOGIT_COPIES * logit_bytes(job)


def embed_memory(job: Job, stage: int) -> EmbedMemory:
    """Memory of a rank of the pipeline stage `stage`."""
    held = stage_memory(job, stage)
    contrast = contrast_bytes(job) if stage == job.pipeline_size - 1 else 0.0
    if passes(job) == 2:
        waiting = vector_bytes(job) / job.data_size if contrast else 0.0  # gradients, for their micro-batches
        passing = held.activations + held.working + held.logits + held.communication
        contrast = waiting + max(0.0, contrast - passing - waiting)
    return EmbedMemory(**{field.name: getattr(held, field.name) for field in fields(held)}, contrast=contrast)


def estimate_embed(job: Job, device: Device, simulated: bool = True) -> EmbedEstimate:
    """Plan the run that `job` has the configuration of. See `estimate`."""
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
    """Of all micro-batches' forward passes through the pipeline, whose stages then all receive the vectors."""
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
    """Of exchanging all vectors and their gradients, and of the products between a replica's own and everyone's."""
    logits = texts(job) * job.config.optim.global_batch_size // job.data_size
    rate = device.peak_flops(FP32) * device.matmul
    products = sum(6 * logits * width for width in widths(job)) / rate  # forward, and the gradients of both sides
    blocks = -(-FP32 * logits // logit_bytes(job)) * len(widths(job))
    moved = LOGIT_PASSES * FP32 * logits * len(widths(job)) + blocks * 2 * VECTOR_COPIES * vector_bytes(job)
    exchange = _exchanged_bytes(job) / device.link_rate(*ring_ranks(device, job.tensor_size, job.data_size))
    return products + moved / device.memory_rate + exchange


def _exchanged_bytes(job: Job) -> float:
    """That a rank sends to its replicas: an all-gather of the vectors, and an all-reduce of their gradients."""
    return 3 * vector_bytes(job) * (job.data_size - 1) / job.data_size


def _broadcast_bytes(job: Job) -> float:
    """That the last pipeline stage sends to the others: a replica's vectors."""
    return vector_bytes(job) / job.data_size if job.pipeline_size > 1 else 0.0


def _sent_more(job: Job, device: Device) -> dict[str, float]:
    """Bytes that the rank which sends most sends in a step beside those of the second pass, by kind of link."""
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
