"""Estimates a job's memory, the time of a step and its parts, and the cost of the whole run."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from megagpt.plan.budget import total_steps
from megagpt.plan.devices import GB, GIB, Device
from megagpt.plan.job import BF16, FP32, Job
from megagpt.plan.memory import HostMemory, StageMemory, host_memory, stage_memory
from megagpt.plan.parameters import stage_parameters, total_parameters, vocabulary_parameters
from megagpt.plan.schedule import Timeline, approximate, simulate
from megagpt.plan.work import Seconds, Work

DAY_SECONDS = 86_400
UPDATE_BYTES = 30  # per parameter: reads gradient, master and both moments, writes the last three and the bf16 weight
HOST_UPDATE_RATE = 20e9  # bytes/s per GPU of the optimizer's update on the host's cores; an assumption
BOUNDS = {
    "matmul": "matrix products",
    "attention": "attention",
    "memory": "memory bandwidth",
    "recompute": "recomputation",
    "tensor_parallel": "tensor-parallel messages",
    "pipeline": "pipeline messages",
    "bubble": "pipeline bubble",
    "data_parallel": "data-parallel messages",
    "optimizer": "optimizer",
    "first_pass": "vectors without gradients",
    "contrast": "comparing all pairs",
    "critic": "the critic's step",
    "generation": "generating responses",
    "scoring": "scoring responses",
}
"""Names of the parts that a step's time is divided into."""


@dataclass(frozen=True)
class Estimate:
    """Memory, time and cost of one job on one device."""

    job: Job
    device: Device
    memory: list[StageMemory]
    """Device memory by pipeline stage."""
    host: list[HostMemory]
    """Host memory by pipeline stage."""
    step_seconds: float
    """Seconds of a step at the full batch size."""
    parts: dict[str, float]
    """Seconds of a step by the keys of BOUNDS, for the stage that computes most; their sum is `step_seconds`."""
    timeline: Timeline
    """The pipeline's passes."""
    sent: dict[str, float]
    """Bytes that the busiest rank sends in a step, by kind of link."""

    @property
    def peak_bytes(self) -> float:
        """Memory of the fullest stage."""
        return max(stage.total for stage in self.memory)

    @property
    def fits(self) -> bool:
        """Whether every stage has enough memory."""
        return self.peak_bytes <= self.device.usable_bytes

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second of the whole job."""
        return self.job.step_tokens / self.step_seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, 0 to 1 (`megagpt.train.flops`)."""
        flops = self.job.flops_per_token * self.tokens_per_second
        return flops / (self.job.gpus * self.device.peak_flops(self.job.itemsize))

    @cached_property
    def hfu(self) -> float:
        """Hardware FLOPs utilisation, 0 to 1: recomputed FLOPs count too."""
        return self.mfu * recomputed_flops(self.job)

    @cached_property
    def days(self) -> float | None:
        """Days of the whole run (`total_steps`) at the full batch size and without interruption; None if unknown."""
        steps = total_steps(self.job.config)
        return None if steps is None else steps * self.step_seconds / DAY_SECONDS

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of the whole run."""
        return None if self.days is None else self.days * 24 * self.job.gpus

    @property
    def bound_by(self) -> str:
        """The two largest parts of a step, with their shares."""
        largest = sorted(self.parts, key=self.parts.get, reverse=True)[:2]
        return ", ".join(f"{BOUNDS[part]} {self.parts[part] / self.step_seconds:.0%}" for part in largest)

    def to_dict(self) -> dict:
        """Plain data, for JSON; sizes in GiB."""
        return {
            "gpus": self.job.gpus,
            "device": dataclasses.asdict(self.device),
            "parameters": total_parameters(self.job.config.model),
            "parameters_per_stage": [stage_parameters(self.job, stage) for stage in range(self.job.pipeline_size)],
            "micro_batches": self.job.micro_batches,
            "replicas": self.job.data_size,
            "memory_gib": [
                {name: size / GIB for name, size in dataclasses.asdict(stage).items()} | {"total": stage.total / GIB}
                for stage in self.memory
            ],
            "host_gib": [{name: size / GIB for name, size in dataclasses.asdict(stage).items()} for stage in self.host],
            "usable_gib": self.device.usable_bytes / GIB,
            "fits": self.fits,
            "flops_per_token": self.job.flops_per_token,
            "step_seconds": self.step_seconds,
            "step_parts_seconds": self.parts,
            "bound_by": self.bound_by,
            "pipeline_bubble": self.timeline.bubble,
            "sent_gb_per_step": {link: size / 1e9 for link, size in self.sent.items()},
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_day": self.tokens_per_second * DAY_SECONDS,
            "mfu": self.mfu,
            "hfu": self.hfu,
            "days": self.days,
            "gpu_hours": self.gpu_hours,
        }


def estimate_training(job: Job, device: Device, simulated: bool = True) -> Estimate:
    """Plan `job`, whose configuration has passed the rules for its number of GPUs, on `device`.

    simulated: False takes the pipeline's time from a formula, without a timeline; faster, for a search.
    """
    work = Work(job, device)
    chunks = [[work.chunk(stage, chunk) for chunk in range(job.virtual_size)] for stage in range(job.pipeline_size)]
    message, crossing = message_seconds(job, device)
    timeline = (simulate if simulated else approximate)(
        job,
        [[forward.total for forward, _ in stage] for stage in chunks],
        [[backward.total for _, backward in stage] for stage in chunks],
        message,
    )
    after = _after_backward(job, device, min(sum(back.total for _, back in stage) for stage in chunks))
    busiest = max((sum((ahead + back for ahead, back in stage), Seconds()) for stage in chunks), key=lambda s: s.total)
    parts = dataclasses.asdict(busiest * job.micro_batches)
    parts["pipeline"] = 2 * message * job.virtual_size * job.micro_batches
    waits = timeline.seconds - sum(parts.values())
    parts["pipeline"] += min(0.0, waits)  # the first and the last stage send in one direction only
    parts["bubble"] = max(0.0, waits)
    parts |= after
    return Estimate(
        job=job,
        device=device,
        memory=[stage_memory(job, stage) for stage in range(job.pipeline_size)],
        host=[host_memory(job, stage) for stage in range(job.pipeline_size)],
        step_seconds=timeline.seconds + sum(after.values()),
        parts=parts,
        timeline=timeline,
        sent=_sent(job, device, work, crossing),
    )


def recomputed_flops(job: Job) -> float:
    """Executed FLOPs per model FLOP, at least 1; recomputed forward passes count."""
    model, recompute = job.config.model, job.config.parallel.recompute
    whole, length = job.flops_per_token, job.row_length
    keys = sum(min(model.window(layer) or length, length) for layer in range(model.num_layers))
    attention = 4 * keys * model.num_attention_heads * model.head_size
    if recompute == "none" or (recompute == "selective" and not job.unfused_attention):
        return 1.0
    if recompute == "selective":
        return 1 + attention / whole
    return 1 + (whole / 3 - 2 * model.hidden_size * model.output_size) / whole


def ring_ranks(device: Device, stride: int, size: int) -> tuple[int, int]:
    """(ranks per node, nodes) of a group of `size` ranks whose numbers differ by `stride`."""
    inside = max(1, min(size, device.gpus_per_node // stride))
    return inside, -(-size // inside)


def message_seconds(job: Job, device: Device) -> tuple[float, bool]:
    """Seconds to send a micro-batch's hidden states to the next stage, and whether the message leaves the node."""
    if job.pipeline_size == 1:
        return 0.0, False
    _, nodes = ring_ranks(device, job.tensor_size * job.data_size, job.pipeline_size)
    crossing = nodes > 1
    return job.message_bytes / device.link_rate(1, 2 if crossing else 1), crossing


def _data_parallel_bytes(job: Job) -> tuple[float, float]:
    """Bytes of gradients and bytes of weights that a rank sends to other replicas in a step."""
    parallel, share = job.config.parallel, (job.data_size - 1) / job.data_size
    parameters = max(stage_parameters(job, stage) for stage in range(job.pipeline_size))
    if parallel.zero_stage == 0:
        return 2 * share * FP32 * parameters, 0.0
    reductions = job.micro_batches if parallel.zero_stage >= 2 else 1  # sharded gradients cannot be kept for later
    gathers = 2 * job.micro_batches if parallel.zero_stage == 3 else 1
    return share * reductions * FP32 * parameters, share * gathers * job.itemsize * parameters


def _after_backward(job: Job, device: Device, backward: float) -> dict[str, float]:
    """Seconds of the reductions and the update after the last backward pass, which took `backward` seconds."""
    parallel = job.config.parallel
    reduction = gathering = 0.0
    if job.data_size > 1:
        rate = device.link_rate(*ring_ranks(device, job.tensor_size, job.data_size))
        reduction, gathering = (sent / rate for sent in _data_parallel_bytes(job))
    if parallel.overlaps_reduction:
        reduction = max(0.0, reduction - backward)
    if job.pipeline_size > 1 and job.config.model.shares_embeddings:
        # The first and the last pipeline stage add up the gradients of the table that they share.
        reduction += FP32 * vocabulary_parameters(job.config.model, job.tensor_size) / device.link_rate(1, 2)
    sharers = job.data_size if parallel.zero_stage >= 1 else 1
    held = max(stage_parameters(job, stage) for stage in range(job.pipeline_size)) / sharers
    update = UPDATE_BYTES * held / device.memory_rate
    if parallel.offload_optimizer != "none":
        update = held * (UPDATE_BYTES / HOST_UPDATE_RATE + (FP32 + BF16) / (device.host_gbs * device.host * GB))
    return {"data_parallel": reduction + gathering, "optimizer": update}


def _sent(job: Job, device: Device, work: Work, crossing: bool) -> dict[str, float]:
    """Bytes that a rank sends in a step, by kind of link."""
    passes = 3 + (job.config.parallel.recompute == "full")  # forward; gradients; gathering the inputs again
    passes -= 0 if job.sequence_size > 1 else 1
    layers = job.layers_per_chunk * job.virtual_size
    links = {"inside a node": 0.0, "between nodes": 0.0, "to the host": 0.0}
    if job.tensor_size > 1:
        where = "inside a node" if job.tensor_size <= device.gpus_per_node else "between nodes"
        links[where] += work.tensor_parallel_bytes() * layers * passes * job.micro_batches
    if job.pipeline_size > 1:
        where = "between nodes" if crossing else "inside a node"
        links[where] += 2 * job.message_bytes * job.virtual_size * job.micro_batches
    if job.data_size > 1:
        _, nodes = ring_ranks(device, job.tensor_size, job.data_size)
        links["between nodes" if nodes > 1 else "inside a node"] += sum(_data_parallel_bytes(job))
    if job.config.parallel.offload_optimizer != "none":
        links["to the host"] += (FP32 + BF16) * stage_parameters(job, 0) / job.data_size
    return links
