"""Plan published runs as they were measured, and print plan and publication side by side.

    python tools/plan_published.py                # the tables of docs/benchmarks/published_runs.md
    python tools/plan_published.py --write-docs   # and put them there
    python tools/plan_published.py --commands     # the `megagpt plan` command of every row

SC21: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", arXiv
2104.04473; its table 1's micro-batch sizes and interleaving are those of Megatron-LM's examples/sc21/run_table_1.sh.
Korthikanti: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198.
Both on A100-80: sequences of 2,048 tokens, a vocabulary of 51,200, attention as two products around a fused softmax,
dropout 0.1. MPT: mosaicml/llm-foundry at 8c8dd48, scripts/train/benchmarking/README.md, H100-80, bf16, 2,048 tokens.
"""

import argparse
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from megagpt.config.load import load
from megagpt.plan.devices import load_devices
from megagpt.plan.estimate import Estimate
from megagpt.plan.job import Job
from megagpt.plan.run import estimate

SEQUENCE, VOCABULARY, MPT_VOCABULARY = 2048, 51200, 50368
TOKENS = 300_000_000_000  # of table 2's training days
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "published_runs.md"
MARKERS = ("<!-- published: made by tools/plan_published.py -->", "<!-- published: end -->")


class Run(NamedTuple):
    """A model and its layout."""

    hidden: int
    layers: int
    heads: int
    tensor: int
    pipeline: int
    virtual: int
    micro_batch: int
    batch: int
    gpus: int


SC21_TABLE_1 = [
    # run; billions of parameters, achieved TFLOP/s a GPU, as percentage of the peak
    (Run(2304, 24, 24, 1, 1, 1, 16, 512, 32), 1.7, 137, 44),
    (Run(3072, 30, 32, 2, 1, 1, 16, 512, 64), 3.6, 138, 44),
    (Run(4096, 36, 32, 4, 1, 1, 16, 512, 128), 7.5, 142, 46),
    (Run(6144, 40, 48, 8, 1, 1, 8, 1024, 256), 18.4, 135, 43),
    (Run(8192, 48, 64, 8, 2, 1, 4, 1536, 512), 39.1, 138, 44),
    (Run(10240, 60, 80, 8, 4, 3, 2, 1792, 1024), 76.1, 140, 45),
    (Run(12288, 80, 96, 8, 8, 2, 2, 2304, 1536), 145.6, 148, 47),
    (Run(16384, 96, 128, 8, 16, 2, 1, 2160, 1920), 310.1, 155, 50),
    (Run(20480, 105, 128, 8, 35, 3, 1, 2520, 2520), 529.6, 163, 52),
    (Run(25600, 128, 160, 8, 64, 1, 1, 3072, 3072), 1008.0, 163, 52),
]

SC21_TABLE_2 = [
    # run, achieved TFLOP/s a GPU, days to 300 billion tokens; ZeRO-3 (one tensor rank, one stage) first, then PTD-P
    (Run(12288, 96, 96, 1, 1, 1, 4, 1536, 384), 144, 90),
    (Run(12288, 96, 96, 1, 1, 1, 2, 1536, 768), 88, 74),
    (Run(12288, 96, 96, 1, 1, 1, 1, 1536, 1536), 44, 74),
    (Run(20480, 105, 128, 1, 1, 1, 4, 2560, 640), 138, 169),
    (Run(20480, 105, 128, 1, 1, 1, 2, 2240, 1120), 98, 137),
    (Run(20480, 105, 128, 1, 1, 1, 1, 2240, 2240), 48, 140),
    (Run(12288, 96, 96, 8, 12, 1, 1, 1536, 384), 153, 84),
    (Run(12288, 96, 96, 8, 12, 1, 1, 1536, 768), 149, 43),
    (Run(12288, 96, 96, 8, 12, 1, 1, 1536, 1536), 141, 23),
    (Run(20480, 105, 128, 8, 35, 1, 1, 2240, 560), 171, 156),
    (Run(20480, 105, 128, 8, 35, 1, 1, 2240, 1120), 167, 80),
    (Run(20480, 105, 128, 8, 35, 1, 1, 2240, 2240), 159, 42),
]

KORTHIKANTI_TABLE_5 = [
    # run; seconds of an iteration with full recomputation, and with selective recomputation and sequence parallelism;
    # model and hardware FLOPs utilisation of the latter in percent
    (Run(6144, 48, 64, 8, 1, 1, 4, 4, 8), 1.42, 1.10, 41.5, 43.7),
    (Run(12288, 96, 96, 8, 8, 3, 1, 64, 64), 18.13, 13.75, 51.4, 52.8),
    (Run(20480, 105, 128, 8, 35, 3, 1, 280, 280), 49.05, 37.83, 56.0, 57.0),
    (Run(25600, 128, 160, 8, 64, 1, 1, 512, 512), 94.42, 71.49, 56.3, 57.0),
]

MPT_SIZES = {"1b": (2048, 24, 16), "7b": (4096, 32, 32), "13b": (5120, 40, 40)}  # hidden, layers, heads
MPT = [
    # size, GPUs, micro-batch, ZeRO stage (FULL_SHARD 3, SHARD_GRAD_OP 2), recompute, MFU in percent: all rows of these
    # sizes in bf16 with 2,048 tokens on 8 GPUs and on 128 and more. A step is one micro-batch.
    ("1b", 8, 14, 3, "none", 41.82),
    ("1b", 128, 12, 2, "none", 40.6),
    ("1b", 256, 12, 2, "none", 39.15),
    ("1b", 512, 12, 2, "none", 36.65),
    ("7b", 8, 6, 3, "none", 46.44),
    ("7b", 128, 6, 3, "none", 45.71),
    ("7b", 256, 6, 3, "none", 44.15),
    ("7b", 512, 6, 3, "none", 42.2),
    ("13b", 8, 2, 3, "none", 39.79),
    ("13b", 128, 16, 3, "full", 42.18),
    ("13b", 256, 16, 3, "full", 41.42),
    ("13b", 512, 16, 3, "full", 41.12),
]


class Arguments(NamedTuple):
    """What `megagpt plan` is given."""

    overrides: tuple[str, ...]
    gpus: int
    device: str
    published_kernels: bool = False
    scattered_messages: bool = False

    @property
    def words(self) -> list[str]:
        """The words after `megagpt plan`."""
        flags = ["--fused-accumulation"] * self.published_kernels + ["--scattered-messages"] * self.scattered_messages
        return [*self.overrides, "--gpus", str(self.gpus), "--device", self.device, *flags]

    @property
    def job(self) -> Job:
        """The job that the command plans."""
        return Job(load(list(self.overrides)), self.gpus, self.published_kernels, self.scattered_messages)


def megatron(run: Run, recompute: str, sequence_parallel: bool = False, zero_stage: int = 0) -> Arguments:
    """A run of one of the two papers."""
    overlap = zero_stage == 0 and run.pipeline == 1  # run_table_1.sh: PyTorch's DistributedDataParallel
    overrides = [
        *_model(run.hidden, run.layers, run.heads, VOCABULARY),
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        "kernels.attention=unfused",
        "kernels.bias_dropout_add=torch",
        *_batch(run.batch, run.micro_batch),
        f"optim.train_tokens={TOKENS}",
        f"parallel.engine={'deepspeed' if zero_stage else 'megatron'}",
        f"parallel.zero_stage={zero_stage}",
        f"parallel.tensor_parallel_size={run.tensor}",
        f"parallel.sequence_parallel={str(sequence_parallel).lower()}",
        f"parallel.pipeline_parallel_size={run.pipeline}",
        f"parallel.virtual_pipeline_size={run.virtual}",
        f"parallel.recompute={recompute}",
        f"parallel.overlap_grad_reduce={str(overlap).lower()}",
    ]
    scattered = run.pipeline > 1 and not sequence_parallel
    return Arguments(tuple(overrides), run.gpus, "a100", not zero_stage, scattered)


def mpt(size: str, gpus: int, micro_batch: int, zero_stage: int, recompute: str) -> Arguments:
    """A row of llm-foundry's benchmark, its FSDP as DeepSpeed's ZeRO."""
    overrides = [
        *_model(*MPT_SIZES[size], MPT_VOCABULARY),
        *_batch(micro_batch * gpus, micro_batch),
        "parallel.engine=deepspeed",
        f"parallel.zero_stage={zero_stage}",
        f"parallel.recompute={recompute}",
    ]
    return Arguments(tuple(overrides), gpus, "h100")


def _model(hidden: int, layers: int, heads: int, vocabulary: int) -> list[str]:
    return [
        "model=gpt3",
        "model.attention_pattern=[dense]",
        f"model.hidden_size={hidden}",
        f"model.num_layers={layers}",
        f"model.num_attention_heads={heads}",
        f"model.sequence_length={SEQUENCE}",
        f"model.vocab_size={vocabulary}",
    ]


def _batch(batch: int, micro_batch: int) -> list[str]:
    return [
        f"optim.global_batch_size={batch}",
        "optim.ramp_start=null",
        "optim.ramp_tokens=0",
        f"parallel.micro_batch_size={micro_batch}",
    ]


def sc21_flops(run: Run) -> float:
    """FLOPs of an iteration with full recomputation (arXiv 2104.04473, equation 3)."""
    h, layers = run.hidden, run.layers
    return 96 * run.batch * SEQUENCE * layers * h**2 * (1 + SEQUENCE / (6 * h) + VOCABULARY / (16 * layers * h))


@cache
def plan(arguments: Arguments) -> Estimate:
    """What `megagpt plan` finds."""
    devices = {name.split("-")[0].lower(): device for name, device in load_devices().items()}
    return estimate(arguments.job, devices[arguments.device])


def _tflops(run: Run, found: Estimate) -> float:
    return sc21_flops(run) / found.step_seconds / run.gpus / 1e12


def _error(planned: float, published: float) -> str:
    return f"{planned / published - 1:+.0%}"


def table_1() -> Iterator[tuple[Arguments, list[str]]]:
    """SC21's table 1."""
    for run, billions, tflops, _ in SC21_TABLE_1:
        arguments = megatron(run, "full")
        planned = _tflops(run, plan(arguments))
        cells = [f"{billions}B", f"{run.gpus}", f"{tflops}", f"{planned:.0f}", _error(planned, tflops)]
        yield arguments, cells


def table_2() -> Iterator[tuple[Arguments, list[str]]]:
    """SC21's table 2."""
    for run, tflops, days in SC21_TABLE_2:
        zero_stage = 0 if run.pipeline > 1 else 3
        arguments = megatron(run, "full", zero_stage=zero_stage)
        found = plan(arguments)
        name = f"{'ZeRO-3' if zero_stage else 'TP 8, PP ' + str(run.pipeline)}, {175 if run.layers == 96 else 530}B"
        speed = _tflops(run, found)
        cells = [
            name,
            f"{run.gpus}",
            f"{tflops}",
            f"{speed:.0f}",
            _error(speed, tflops),
            f"{days}",
            f"{found.days:.0f}",
        ]
        yield arguments, cells


def table_5() -> Iterator[tuple[Arguments, list[str]]]:
    """Korthikanti's table 5, a row for each kind of recomputation."""
    for (run, full, selective, mfu, hfu), name in zip(KORTHIKANTI_TABLE_5, ("22B", "175B", "530B", "1T"), strict=True):
        for kind, seconds in (("full", full), ("selective", selective)):
            arguments = megatron(run, kind, sequence_parallel=kind == "selective")
            found = plan(arguments)
            step = found.step_seconds
            cells = [f"{name}, {kind}", f"{run.gpus}", f"{seconds:.2f}", f"{step:.2f}", _error(step, seconds)]
            shares = [f"{mfu}%", f"{found.mfu:.1%}", f"{hfu}%", f"{found.hfu:.1%}"]
            yield arguments, cells + (shares if kind == "selective" else [""] * 4)


def table_mpt() -> Iterator[tuple[Arguments, list[str]]]:
    """llm-foundry's benchmark."""
    for size, gpus, micro_batch, zero_stage, recompute, mfu in MPT:
        arguments = mpt(size, gpus, micro_batch, zero_stage, recompute)
        planned = 100 * plan(arguments).mfu
        cells = [f"MPT {size.upper()}", f"{gpus}", f"{micro_batch}", f"{zero_stage}", recompute]
        yield arguments, [*cells, f"{mfu}%", f"{planned:.1f}%", _error(planned, mfu)]


SPEED = "GPUs | TFLOP/s a GPU, published | planned | error"
TABLES = {
    f"Narayanan et al., table 1 | {SPEED}": table_1,
    f"Narayanan et al., table 2 | {SPEED} | days, published | planned": table_2,
    "Korthikanti et al., table 5, recomputation | GPUs | seconds, published | planned | error"
    " | MFU, published | planned | HFU, published | planned": table_5,
    "llm-foundry's benchmark | GPUs | micro-batch | ZeRO | recompute | MFU, published | planned | error": table_mpt,
}
"""The tables by their heads."""


def markdown() -> str:
    """All tables."""
    texts = []
    for head, rows in TABLES.items():
        lines = [head, " | ".join(["---"] + ["---:"] * head.count(" | "))]
        lines += [" | ".join(cells) for _, cells in rows()]
        texts.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(texts)


def main() -> int:
    """Plan, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="print the command of every row instead")
    parser.add_argument("--write-docs", action="store_true", help=f"put the tables into docs/benchmarks/{PAGE.name}")
    args = parser.parse_args()
    if args.commands:
        for rows in TABLES.values():
            for arguments, cells in rows():
                print(f"# {', '.join(cells[:2])} GPUs\nmegagpt plan {shlex.join(arguments.words)}")
        return 0
    text = markdown()
    print(text)
    if args.write_docs:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        PAGE.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
