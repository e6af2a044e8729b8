"""Traces a run's model on fake tensors in a fake world of the run's size, without allocating memory.

The world is PyTorch's `fake` process group, the tensors are FakeTensors; the code that builds and computes is the
project's own. The results are exact: parameters per rank, bytes saved for the backward pass, and peak bytes.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from megagpt.config.schema import Config, KernelsConfig
from megagpt.errors import ConfigError
from megagpt.kernels import backend
from megagpt.kernels.attention import pytorch_backend, triton_supports
from megagpt.model.gpt import GPT
from megagpt.parallel import cpu, launch
from megagpt.plan.job import Job


@dataclass(frozen=True)
class ChunkTrace:
    """Trace of one micro-batch's forward and backward pass through one chunk of a rank."""

    parameters: int
    saved_bytes: int
    """Bytes that the forward pass saves for the backward pass, including its output to the next stage, not weights."""
    peak_bytes: int
    """Peak bytes of the two passes, without weights and gradients of weights."""


@dataclass(frozen=True)
class StageTrace:
    """The chunks of a rank of one pipeline stage."""

    stage: int
    chunks: list[ChunkTrace]

    @property
    def parameters(self) -> int:
        """Parameters of the rank."""
        return sum(chunk.parameters for chunk in self.chunks)

    def activation_bytes(self, in_flight: int) -> float:
        """Peak bytes saved by `in_flight` micro-batches, each in one of the chunks.

        A chunk with the embedding or the logits saves more than others; this excess counts for one micro-batch.
        """
        saved = [chunk.saved_bytes for chunk in self.chunks]
        return in_flight * min(saved) + sum(saved) - len(saved) * min(saved)

    @property
    def working_bytes(self) -> int:
        """Bytes that a pass needs in addition to the saved tensors."""
        return max(chunk.peak_bytes - chunk.saved_bytes for chunk in self.chunks)


def trace(job: Job, stages: list[int] | None = None, on_gpu: bool = True) -> list[StageTrace]:
    """Trace one rank of each of `stages`, by default of the first, the middle and the last stage.

    on_gpu: True for the kernels that a GPU would run, False for this machine's. Equal chunks are traced once.
    Raises ConfigError when a process group exists already.
    """
    if dist.is_initialized():
        raise ConfigError(
            "a trace needs its own process group, but this process has joined one already: run it without torchrun"
        )
    if on_gpu:
        config = dataclasses.replace(job.config, kernels=_gpu_kernels(job.config))
        job = dataclasses.replace(job, config=config)
    wanted = stages if stages is not None else sorted({0, job.pipeline_size // 2, job.pipeline_size - 1})
    known: dict[tuple, ChunkTrace] = {}
    return [StageTrace(stage, _trace_stage(job, stage, known)) for stage in wanted]


def watch(model: GPT, config: Config) -> ChunkTrace:
    """Trace the memory of a forward and backward pass through `model`, whose tensors may be fake or real."""
    parameters = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in parameters:
            saved[id(storage)] = storage
        return tensor

    tracker = MemTracker()
    tracker.track_external(model)
    with tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensors that the tracker cannot classify but counts anyway
        inputs = example_inputs(model, config)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = inputs()
        if not model.post_process:  # the schedule keeps the output until its gradient arrives
            pack(output)
        saved_bytes = sum(storage.nbytes() for storage in saved.values())
        saved.clear()
        output.backward(torch.ones_like(output))
    peak = sum(held["Total"] for held in tracker.get_tracker_snapshot("peak").values())
    weights = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    return ChunkTrace(sum(parameter.numel() for parameter in model.parameters()), saved_bytes, peak - weights)


def example_inputs(model: GPT, config: Config) -> partial:
    """A callable that runs `model`'s forward pass on one micro-batch. Weights' gradients are freed at once.

    The engines also add each gradient to a buffer and free it.
    """
    shape = (Job(config, 1).rows, Job(config, 1).row_length)
    device = cpu.device()
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    if not model.pre_process:
        length = shape[1] // (config.parallel.tensor_parallel_size if config.parallel.sequence_parallel else 1)
        size = (length, shape[0], config.model.hidden_size)
        model.set_input_tensor(torch.zeros(size, dtype=model.config.params_dtype, device=device, requires_grad=True))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    positions = torch.arange(shape[1], device=device).expand(shape)
    labels = positions[:, -1] if config.model.head == "embedding" else tokens  # embedding: positions of the text ends
    return partial(model, tokens, positions, None, labels=labels if model.post_process else None)


def _trace_stage(job: Job, stage: int, known: dict[tuple, ChunkTrace]) -> list[ChunkTrace]:
    chunks, model = [], job.config.model
    kinds = []
    for chunk in range(job.virtual_size):
        first, last = stage == 0 and chunk == 0, stage == job.pipeline_size - 1 and chunk == job.virtual_size - 1
        kinds.append((first, last, tuple(model.window(layer) for layer in job.chunk_layers(stage, chunk))))
    if set(kinds) <= set(known):
        return [known[kind] for kind in kinds]
    with _fake_world(job, stage * job.tensor_size * job.data_size):
        for chunk, kind in enumerate(kinds):
            if kind not in known:
                virtual_stage = chunk if job.virtual_size > 1 else None
                known[kind] = watch(GPT(job.config, *kind[:2], virtual_stage), job.config)
            chunks.append(known[kind])
    return chunks


@contextmanager
def _fake_world(job: Job, rank: int) -> Iterator[None]:
    """Context in which this process is `rank` of the job, without other ranks and without memory for tensors."""
    dtype = torch.bfloat16 if job.config.optim.precision == "bf16" else torch.float32
    default = torch.get_default_dtype()
    tracker = tensor_parallel.random.CudaRNGStatesTracker
    try:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=job.gpus)
        launch.initialize(job.config.parallel, job.config.seed)
        torch.set_default_dtype(dtype)  # for norms, because `GPT.to` below does not convert them
        with ExitStack() as stack:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            # A fake parameter cannot be converted in place; it already has the right dtype and device.
            stack.enter_context(_replaced(GPT, "to", lambda self, *_: self))
            # Megatron-Core compares random states by value, and fake tensors have no values.
            stack.enter_context(_replaced(tracker, "fork", lambda self, name="": nullcontext()))
            # Only the kernels' output shapes are needed, without a GPU or Triton's interpreter.
            stack.enter_context(_replaced(backend, "_interpreted", lambda: True))
            yield
    finally:
        torch.set_default_dtype(default)
        launch.shutdown()


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _gpu_kernels(config: Config) -> KernelsConfig:
    """The kernels that `auto` selects on a GPU: ours, if they support the model."""
    model = config.model
    ours = config.optim.precision == "bf16" and triton_supports(
        torch.bfloat16, model.head_size, dropout=model.attention_dropout
    )
    chosen = {
        field.name: "triton"
        for field in dataclasses.fields(config.kernels)
        if getattr(config.kernels, field.name) == "auto"
    }
    if "attention" in chosen and not ours:
        chosen["attention"] = pytorch_backend(model.attention_softcap)
    return dataclasses.replace(config.kernels, **chosen)
