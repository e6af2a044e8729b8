"""Trains all layouts for a number of ranks, and compares each with one rank, step by step.

`cases` lists the layouts, `measure` trains them, `compare` finds the differences; `tools/check_layouts.py` is the
command line. All layouts start from the same weights and read the same batches, at the constant learning rate
`optim.lr`, without dropout and without a batch ramp.
"""

import dataclasses
import gc
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Protocol

import torch

from megagpt import log as logs
from megagpt.config.rules import check
from megagpt.config.schema import Config, CorpusConfig, DataConfig, ParallelConfig
from megagpt.data.batch import Batch
from megagpt.data.loader import PretrainLoader
from megagpt.errors import ConfigError, DistributedError
from megagpt.parallel import launch
from megagpt.parallel.dims import ParallelDims
from megagpt.parallel.engine import Objective
from megagpt.parallel.spawn import run_ranks
from megagpt.train.objectives import LanguageModelObjective

REFERENCES = ("one rank", "one rank, bf16")
"""Names of the reference layouts for all others."""

TIMEOUT_SECONDS = 600
CASES_A_START = 8
"""Cases per start of the ranks. DeepSpeed's engines leave dozens of threads behind until their process ends."""


class Batches(Protocol):
    """Source of micro-batches, like `Loader`; the samples of one micro-batch may give several batches."""

    def micro_batches(self, first_sample: int, batch_size: int, rank: int, replicas: int) -> Iterator[Batch]:
        """One rank's micro-batches of the step with `batch_size` samples that starts at `first_sample`."""


Workload = Callable[[Config], tuple[Objective, Batches]]
"""Creates the objective and the data; must be a module-level function, because other processes call it."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One layout of one model."""

    model: str
    layout: str
    ranks: int
    config: Config
    workload: Workload


@dataclasses.dataclass(frozen=True)
class Curve:
    """Losses, time and memory of a case on one rank."""

    loss: list[float]
    grad_norm: list[float]
    milliseconds: float
    """Median time of a step, without the first one."""
    memory_mib: float
    """Peak memory: allocated on the GPU, or resident in a process on CPUs."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A case against one rank: the largest relative differences over all steps and ranks."""

    model: str
    layout: str
    ranks: int
    loss_difference: float
    grad_norm_difference: float
    milliseconds: float
    memory_mib: float
    tolerance: float
    holds_grad_norm: bool

    @property
    def equal(self) -> bool:
        """Whether the differences are within tolerance; NaN is not."""
        held = [self.loss_difference, self.grad_norm_difference][: 1 + self.holds_grad_norm]
        return all(difference <= self.tolerance for difference in held)


# Listing layouts


def text(config: Config) -> tuple[Objective, Batches]:
    """Next-token prediction on the configured corpora if they exist, else on random tokens."""
    return LanguageModelObjective(), PretrainLoader(config) if has_data(config) else RandomTokens(config)


def cases(
    models: dict[str, Config], ranks: int, workload: Workload = text
) -> tuple[list[Case], dict[str, dict[str, list[str]]]]:
    """All layouts on 1 to `ranks` ranks, one rank first; and {reason: {model: refused layouts}}.

    Raises ConfigError if a single rank cannot train the model.
    """
    found: list[Case] = []
    refused: dict[str, dict[str, list[str]]] = {}
    for world_size, (model, given) in product(range(1, ranks + 1), models.items()):
        base = _comparable(given)
        check(base, 1)
        for parallel in _layouts(base, world_size):
            for suffix, config in _variants(dataclasses.replace(base, parallel=parallel), world_size):
                try:
                    check(config, world_size)
                except ConfigError as error:
                    lines, layout = str(error).splitlines(), _name(parallel, world_size) + suffix
                    refused.setdefault(lines[len(lines) > 1].strip(), {}).setdefault(model, []).append(layout)
                    if not suffix:
                        break  # its variants are refused too
                else:
                    found.append(Case(model, _name(parallel, world_size) + suffix, world_size, config, workload))
    return found, refused


def _comparable(config: Config) -> Config:
    """The configuration on one rank, in fp32, without dropout and batch ramp.

    Without corpora it names data that does not exist, because the rules require some.
    """
    parallel = ParallelConfig(
        zero_stage=0,
        overlap_grad_reduce=False,
        micro_batch_size=config.parallel.micro_batch_size,
        timeout_minutes=config.parallel.timeout_minutes,
    )
    model = dataclasses.replace(config.model, hidden_dropout=0.0, attention_dropout=0.0)
    optim = dataclasses.replace(config.optim, precision="fp32", ramp_start=None, ramp_tokens=0)
    absent = DataConfig("none", (CorpusConfig("none"),), conversations=("none",), rankings=("none",))
    data = config.data if has_data(config) else absent
    return dataclasses.replace(config, model=model, parallel=parallel, optim=optim, data=data)


def has_data(config: Config) -> bool:
    """Whether all configured corpora exist; otherwise random tokens replace them."""
    corpora = config.data.corpora
    return bool(corpora) and all(Path(f"{corpus.path}.idx").exists() for corpus in corpora)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _layouts(config: Config, world_size: int) -> Iterator[ParallelConfig]:
    for tensor in _divisors(world_size):
        for pipeline in _divisors(world_size // tensor):
            chunks = _divisors(max(1, config.model.num_layers // pipeline)) if pipeline > 1 else [1]
            for sequence, virtual, zero in product({False, tensor > 1}, chunks, (0, 1)):
                yield dataclasses.replace(
                    config.parallel,
                    tensor_parallel_size=tensor,
                    sequence_parallel=sequence,
                    pipeline_parallel_size=pipeline,
                    virtual_pipeline_size=virtual,
                    zero_stage=zero,
                )
        if importlib.util.find_spec("deepspeed"):
            for sequence, zero in product({False, tensor > 1}, (1, 2, 3)):
                yield dataclasses.replace(
                    config.parallel,
                    engine="deepspeed",
                    tensor_parallel_size=tensor,
                    sequence_parallel=sequence,
                    zero_stage=zero,
                )


def _variants(config: Config, world_size: int) -> Iterator[tuple[str, Config]]:
    """(suffix of the name, configuration): the layout itself and, for full use of each kind, its options."""
    yield "", config
    parallel = config.parallel
    tensor, pipeline, size = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.micro_batch_size
    bf16 = dataclasses.replace(config, optim=dataclasses.replace(config.optim, precision="bf16"))
    if parallel.engine == "deepspeed":
        if world_size == 2:
            offload = {"offload_optimizer": "cpu"} | ({"offload_parameters": "cpu"} if parallel.zero_stage == 3 else {})
            yield ", offload", dataclasses.replace(config, parallel=dataclasses.replace(parallel, **offload))
            yield ", bf16", bf16
        return
    if world_size == 1 and parallel.zero_stage == 0:
        yield ", bf16", bf16  # the reference for all other bf16 layouts
    kinds = sum(size > 1 for size in (tensor, pipeline, world_size // (tensor * pipeline)))
    if world_size > 2 and kinds == 1:
        return  # two ranks already test a single kind with the options
    chunks = config.model.num_layers // pipeline if pipeline > 1 else 1
    if (
        parallel.zero_stage == 0
        or parallel.sequence_parallel != (tensor > 1)
        or parallel.virtual_pipeline_size != chunks
    ):
        return
    options = {
        ", full recompute": {"recompute": "full"},
        ", selective recompute": {"recompute": "selective"},
        f", micro-batches of {2 * size}": {"micro_batch_size": 2 * size},
    }
    if world_size > tensor * pipeline:
        options[", overlapped reduction"] = {"overlap_grad_reduce": True}
    for suffix, change in options.items():
        yield suffix, dataclasses.replace(config, parallel=dataclasses.replace(parallel, **change))
    kernels = dataclasses.replace(config.kernels, fuse_output_projection=True)
    yield ", fused projection", dataclasses.replace(config, kernels=kernels)
    yield ", bf16", bf16


def _name(parallel: ParallelConfig, world_size: int) -> str:
    dims = ParallelDims.of(parallel, 0, world_size)
    parts = {
        f"TP{dims.tensor_size}": dims.tensor_size > 1,
        "SP": parallel.sequence_parallel,
        f"PP{dims.pipeline_size}": dims.pipeline_size > 1,
        f"VPP{dims.virtual_size}": dims.virtual_size > 1,
        f"DP{dims.data_size}": dims.data_size > 1,
        "one rank": world_size == 1,
        f"ZeRO-{parallel.zero_stage}": parallel.zero_stage > 0,
        "(DeepSpeed)": parallel.engine == "deepspeed",
    }
    return " ".join(part for part, used in parts.items() if used)


# Training, on every rank


def train_cases(todo: list[Case], steps: int, done: int, total: int) -> list[Curve]:
    """Train each case in turn. done, total: finished cases and all cases, for the progress bar. Collective."""
    logs.setup()
    curves = []
    with logs.progress(total, "layouts", f"ranks: {todo[0].ranks}", initial=done) as bar:
        for case in todo:
            bar.set_postfix(layout=f"{case.model} {case.layout}", refresh=False)
            try:
                curves.append(_train(case, steps))
            except Exception as error:
                raise DistributedError(f"{case.model}, {case.layout}: {error}") from error
            gc.collect()  # engines contain reference cycles; free them before the next case
            bar.update()
    return curves


def _train(case: Case, steps: int) -> Curve:
    from megagpt.parallel.build import build_engine

    config = case.config
    device = launch.initialize(config.parallel, config.seed)
    _reset_peak_memory(device)
    objective, loader = case.workload(config)
    engine = build_engine(config, objective)
    dims, batch_size = engine.dims, config.optim.global_batch_size
    results, seconds = [], []
    for step in range(steps):
        start = time.perf_counter()
        batches = list(loader.micro_batches(step * batch_size, batch_size, dims.data_rank, dims.data_size))
        results.append(engine.train_step(iter(batches), len(batches), config.optim.lr))
        seconds.append(time.perf_counter() - start)
    launch.leave_groups()
    return Curve(
        [result.loss for result in results],
        [result.grad_norm for result in results],
        1000 * statistics.median(seconds[1:] or seconds),
        _peak_memory_mib(device),
    )


class RandomTokens:
    """Replaces PretrainLoader. Low token ids are more frequent, so that there is something to learn."""

    def __init__(self, config: Config) -> None:
        """config: its model determines the length of samples and the vocabulary."""
        self.config = config

    def micro_batches(self, first_sample: int, batch_size: int, rank: int, replicas: int) -> Iterator[Batch]:
        """See `PretrainLoader.micro_batches`."""
        size = self.config.parallel.micro_batch_size
        for start in range(first_sample + rank * size, first_sample + batch_size, size * replicas):
            yield from self.of_samples(range(start, start + size))

    def of_samples(self, numbers: range) -> Iterator[Batch]:
        """The micro-batches of these samples."""
        yield self.batch(numbers)

    def batch(self, numbers: range) -> Batch:
        """A batch with one row per sample; the loss mask has a different number of ones in each row."""
        tokens, mask = (torch.stack(parts) for parts in zip(*map(self._sample, numbers), strict=True))
        positions = torch.arange(mask.shape[1]).expand(mask.shape).contiguous()
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, positions)

    def _sample(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [S + 1] and loss mask [S]."""
        model = self.config.model
        generator = torch.Generator().manual_seed(number)
        tokens = (torch.rand(model.sequence_length + 1, generator=generator) ** 3 * model.vocab_size).long()
        return tokens, (torch.rand(model.sequence_length, generator=generator) < 0.7).float()


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (control := Path("/proc/self/clear_refs")).exists():
        control.write_text("5")  # resets the peak


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# Comparing


def measure(todo: list[Case], steps: int, gpus: bool) -> dict[Case, list[Curve]]:
    """{case: curves of all its ranks}. Each start of the ranks trains at most CASES_A_START cases."""
    measured: dict[Case, list[Curve]] = {}
    for ranks in sorted({case.ranks for case in todo}):
        of_size = [case for case in todo if case.ranks == ranks]
        for start in range(0, len(of_size), CASES_A_START):
            group = of_size[start : start + CASES_A_START]
            of_ranks = run_ranks(
                train_cases, ranks, group, steps, len(measured), len(todo), timeout=TIMEOUT_SECONDS, gpus=gpus
            )
            measured |= dict(zip(group, map(list, zip(*of_ranks, strict=True)), strict=True))
    return measured


def compare(measured: dict[Case, list[Curve]], tolerance: float, bf16_tolerance: float) -> list[Row]:
    """Compare every case with one rank of the same model and precision; in bf16 only the loss has a tolerance."""
    references = {}
    for case, (curve, *_) in measured.items():
        references.setdefault((case.model, case.config.optim.precision), curve)
    rows = []
    for case, curves in measured.items():
        precision = case.config.optim.precision
        reference, exact = references[case.model, precision], precision == "fp32"
        rows.append(
            Row(
                case.model,
                case.layout,
                case.ranks,
                _difference([curve.loss for curve in curves], reference.loss),
                _difference([curve.grad_norm for curve in curves], reference.grad_norm),
                max(curve.milliseconds for curve in curves),
                max(curve.memory_mib for curve in curves),
                tolerance if exact else bf16_tolerance,
                exact,
            )
        )
    return rows


def _difference(of_ranks: list[list[float]], reference: list[float]) -> float:
    """Largest relative difference; NaN if any is NaN."""
    ours, theirs = (torch.tensor(numbers, dtype=torch.float64) for numbers in (of_ranks, reference))
    return ((ours - theirs).abs() / theirs.abs()).max().item()  # torch's max, unlike Python's, keeps NaN
