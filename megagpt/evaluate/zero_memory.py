"""Measures the memory of parameters, gradients and optimizer state on each rank at each ZeRO stage."""

import dataclasses
import gc
import math

import torch

from megagpt.config.schema import Config
from megagpt.data.batch import Batch
from megagpt.parallel import launch
from megagpt.parallel.spawn import run_ranks

TIMEOUT_SECONDS = 600
BF16, FP32 = 2, 4  # bytes


@dataclasses.dataclass(frozen=True)
class BytesPerParameter:
    """Bytes per parameter of the model, on the rank that holds the most."""

    parameters: float
    gradients: float
    optimizer: float


def theory(stage: int, ranks: int, bf16: bool) -> BytesPerParameter:
    """Bytes that a rank should hold (Rajbhandari et al., arXiv 1910.02054, section 3), with fp32 gradients.

    With DeepSpeed fp32 parameters also have separate fp32 master weights. In bf16, stage 1 also keeps the last
    micro-batch's gradients in bf16.
    """
    whole = BytesPerParameter(BF16 if bf16 else FP32, FP32 + (BF16 if bf16 and stage == 1 else 0), 3 * FP32)
    return BytesPerParameter(
        whole.parameters / (ranks if stage >= 3 else 1),
        whole.gradients / (ranks if stage >= 2 else 1),
        whole.optimizer / (ranks if stage >= 1 else 1),
    )


def measure(config: Config, stages: list[int], ranks: int) -> dict[int, BytesPerParameter]:
    """Bytes held at each of DeepSpeed's ZeRO `stages` by data-parallel `ranks`, on this machine's CPUs."""
    of_ranks = run_ranks(measure_stages, ranks, config, stages, timeout=TIMEOUT_SECONDS)
    return {
        stage: BytesPerParameter(*(max(values) for values in zip(*map(dataclasses.astuple, held), strict=True)))
        for stage, held in zip(stages, zip(*of_ranks, strict=True), strict=True)
    }


def measure_stages(config: Config, stages: list[int]) -> list[BytesPerParameter]:
    """This rank's bytes per parameter at each stage. Collective."""
    found = []
    for stage in stages:
        parallel = dataclasses.replace(config.parallel, engine="deepspeed", zero_stage=stage)
        found.append(_measure(dataclasses.replace(config, parallel=parallel)))
        gc.collect()
    return found


def _measure(config: Config) -> BytesPerParameter:
    from megagpt.parallel.zero import DeepSpeedEngine
    from megagpt.train.objectives import LanguageModelObjective

    launch.initialize(config.parallel, config.seed)
    gc.collect()
    before = _storages()
    gradients: list[int] = []

    class WatchedEngine(DeepSpeedEngine):
        """Measures the memory of gradients at the moment when all of them exist."""

        def divide_gradients(self, divisor: float) -> None:
            super().divide_gradients(divisor)
            gc.collect()
            reached = _storages() | _addresses([p.grad for p in self.modules[0].parameters() if p.grad is not None])
            gradients.append(sum(size for address, size in reached.items() if address not in before) - sum(kept))

    engine = WatchedEngine(config, LanguageModelObjective())
    parameters = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.modules[0].parameters()]
    states = [value for state in engine.zero.optimizer.state.values() for value in state.values()]
    kept = _bytes(parameters), _bytes([*engine.masters, *states])
    for _ in range(2):
        engine.train_step(iter([_batch(config)] * 2), 2, config.optim.lr)
    count = sum(math.prod(boxes[0].global_shape) for _, _, boxes in engine.parameters)
    launch.leave_groups()
    return BytesPerParameter(kept[0] / count, gradients[-1] / count, kept[1] / count)


def _batch(config: Config) -> Batch:
    shape = (config.parallel.micro_batch_size, config.model.sequence_length)
    tokens = torch.randint(config.model.vocab_size, shape)
    return Batch(tokens, tokens, torch.ones(shape), torch.arange(shape[1]).expand(shape).contiguous())


def _storages() -> dict[int, int]:
    """{address: bytes} of the memory of every tensor that Python can reach."""
    return _addresses([thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)])


def _addresses(tensors: list[torch.Tensor]) -> dict[int, int]:
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(_addresses(tensors).values())
