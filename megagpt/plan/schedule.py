"""Simulates a pipeline under Megatron-Core's 1F1B and interleaved schedules."""

from dataclasses import dataclass

from megagpt.plan.job import Job


@dataclass(frozen=True)
class Pass:
    """The forward or backward pass of one micro-batch through one chunk."""

    stage: int
    chunk: int
    micro_batch: int
    forward: bool
    start: float
    """Seconds since the step began."""
    end: float
    """Seconds since the step began, including the message to the next stage."""


@dataclass(frozen=True)
class Timeline:
    """A step's passes through the pipeline."""

    passes: list[Pass]
    seconds: float
    """Seconds from the start of the step to the end of the last backward pass."""
    bubble: float
    """Fraction of the stages' time in which they wait, 0 to 1."""


def order(job: Job, stage: int) -> list[tuple[bool, int, int]]:
    """(forward, micro-batch, chunk) of every pass of a stage, in the order of execution.

    A warm-up of forward passes; then forward and backward passes alternate; then the remaining backward passes
    (Narayanan et al., arXiv 2104.04473, section 2.2). An interleaved stage takes groups of as many micro-batches as
    there are stages through its chunks in turn; backward passes visit the chunks in reverse order.
    """
    group, chunks = job.pipeline_size if job.virtual_size > 1 else job.micro_batches, range(job.virtual_size)
    table = [
        (micro_batch, chunk)
        for first in range(0, job.micro_batches, group)
        for chunk in chunks
        for micro_batch in range(first, min(first + group, job.micro_batches))
    ]
    forward = [(True, *entry) for entry in table]
    backward = [(False, micro_batch, job.virtual_size - 1 - chunk) for micro_batch, chunk in table]
    warm = job.warm_up(stage)
    steady = [each for pair in zip(forward[warm:], backward, strict=False) for each in pair]
    return forward[:warm] + steady + backward[len(table) - warm :]


def simulate(job: Job, forward: list[list[float]], backward: list[list[float]], message: float) -> Timeline:
    """The timeline of a step in which every pass starts as soon as its input is there and its stage is free.

    forward, backward: seconds of a pass, by stage and chunk. message: seconds to send a micro-batch's hidden states to
    the next stage; the sender does not compute meanwhile.
    """
    orders = [order(job, stage) for stage in range(job.pipeline_size)]
    position, clock, busy = [0] * job.pipeline_size, [0.0] * job.pipeline_size, 0.0
    ends: dict[tuple[bool, int, int], float] = {}  # by (forward, micro-batch, number of the chunk in the model)
    passes: list[Pass] = []
    depth = job.pipeline_size * job.virtual_size
    waiting = list(range(job.pipeline_size))
    while waiting:
        stage = waiting.pop()
        while position[stage] < len(orders[stage]):
            is_forward, micro_batch, chunk = orders[stage][position[stage]]
            place = chunk * job.pipeline_size + stage
            source = _source(is_forward, micro_batch, place, depth)
            if source is not None and source not in ends:
                break
            start = max(clock[stage], ends[source] if source is not None else 0.0)
            seconds = (forward if is_forward else backward)[stage][chunk]
            sends = job.pipeline_size > 1 and place != (depth - 1 if is_forward else 0)
            clock[stage] = start + seconds + (message if sends else 0.0)
            busy += seconds + (message if sends else 0.0)
            ends[is_forward, micro_batch, place] = clock[stage]
            position[stage] += 1
            passes.append(Pass(stage, chunk, micro_batch, is_forward, start, clock[stage]))
            neighbour = (stage + (1 if is_forward else -1)) % job.pipeline_size
            if neighbour != stage and neighbour not in waiting:
                waiting.append(neighbour)
    seconds = max(clock)
    return Timeline(passes, seconds, 1 - busy / (seconds * job.pipeline_size))


def approximate(job: Job, forward: list[list[float]], backward: list[list[float]], message: float) -> Timeline:
    """Approximates `simulate` by the formula for equal stages (arXiv 2104.04473, section 2.2); lists no passes."""
    stages = [sum(ahead) + sum(back) for ahead, back in zip(forward, backward, strict=True)]
    messages = 2 * message * job.virtual_size if job.pipeline_size > 1 else 0.0
    filling = sum(seconds + messages for seconds in stages) - max(stages) - messages
    seconds = job.micro_batches * (max(stages) + messages) + filling / job.virtual_size
    busy = job.micro_batches * sum(seconds + messages for seconds in stages)
    return Timeline([], seconds, 1 - busy / (seconds * job.pipeline_size))


def _source(is_forward: bool, micro_batch: int, place: int, depth: int) -> tuple[bool, int, int] | None:
    """The pass whose output this pass needs; None for the first forward pass."""
    if is_forward:
        return (True, micro_batch, place - 1) if place else None
    return (False, micro_batch, place + 1) if place < depth - 1 else (True, micro_batch, place)
