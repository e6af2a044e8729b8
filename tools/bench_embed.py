"""Compare the speed of stage embed with sentence-transformers, and measure how a step grows with its batch.

    python tools/bench_embed.py --tokenizer runs/demo/tokenizer.json --pairs runs/embed/data/pairs.jsonl \\
        --batch-size 64 --micro-batches 16 32 --growth 64 128 256 --output docs/benchmarks/embed_cpu.json

Both have a dense GPT-2 of the same shape with random weights, the same pairs in the same batches, symmetric InfoNCE and
torch's fused AdamW. A step reads texts, makes tokens, passes them through the model twice and updates it: with stage
embed on one side and CachedMultipleNegativesRankingLoss on the other, each with its fastest micro-batch of
--micro-batches. They take steps in turn; the figures are medians. Before that, it measures steps of growing batches,
each size in a separate process: seconds per pair, and peak memory of the process.
"""

import argparse
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bench_train import machine, transformers_model

from megagpt import env
from megagpt.config.load import load
from megagpt.config.schema import Config
from megagpt.data.pairs import read_pairs
from megagpt.data.tokenizer import END_OF_TEXT
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.log import run_tool
from megagpt.parallel import cpu, launch
from megagpt.stages.embed import Embed
from megagpt.train.trainer import Step, peak_memory_gib

TEMPERATURE = 0.05
LR = 1e-4
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
"""Options that make sentence-transformers' loss equal to the paper's."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="shape, of configs/model (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--pairs", type=Path, required=True, help="file of pairs")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs of a step (default: %(default)s)")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[8, 16, 32], help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="steps of each (default: %(default)s)")
    parser.add_argument("--growth", type=int, nargs="*", default=[128, 256, 512, 1024], help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if env.world_size() > 1:
        raise ConfigError(f"this runs on one rank, not {env.world_size()}: start it without torchrun")
    check_pairs(args)
    result = machine(torch.device("cpu"), torch.get_num_threads()) | {"growth": growth(args)}
    try:
        launch.initialize(settings(args, args.batch_size, 1).parallel, seed=0)
        result["step"] = beside_peer(args)
    finally:
        launch.shutdown()
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


def check_pairs(args: argparse.Namespace) -> None:
    """Raise ConfigError now if the file has too few pairs for a batch; the last size is only reached after minutes."""
    documents = [pair.document for pair in read_pairs([args.pairs])]
    usable = documents.count(None) + len({*documents} - {None})  # a batch has no document twice
    for option, size in [("--batch-size", args.batch_size), *(("--growth", size) for size in args.growth)]:
        if size > usable:
            raise ConfigError(
                f"{option} {size} takes {size} pairs of different documents, and {args.pairs} has {usable}: "
                "give more pairs, or lower it"
            )


def settings(args: argparse.Namespace, batch_size: int, micro_batch_size: int) -> Config:
    """The configuration of this project's side."""
    return load(
        [
            f"model={args.model}",
            "stage=embed",
            "model.attention_pattern=[dense]",
            f"data.tokenizer={args.tokenizer}",
            f"data.pairs=[{args.pairs}]",
            "data.split=[1,0,0]",
            f"embed.temperature={TEMPERATURE}",
            "embed.learn_temperature=false",
            f"optim.lr={LR}",
            "optim.precision=fp32",
            f"optim.global_batch_size={batch_size}",
            f"parallel.micro_batch_size={micro_batch_size}",
        ]
    )


class Ours:
    """Stage embed, a step at a time."""

    def __init__(self, config: Config) -> None:
        self.stage, self.number = Embed(config), 0
        self.stage.build()

    def step(self) -> None:
        """Learn from the next batch."""
        config = self.stage.config
        size, micro = config.optim.global_batch_size, config.parallel.micro_batch_size
        first, self.number = self.number * size, self.number + 1
        batches = self.stage.loader.micro_batches(first, size, 0, 1)
        self.stage.train_step(batches, Step(self.number, first, size, size // micro, 0, LR, time.perf_counter()))


class Theirs:
    """A GPT-2 of the same shape in sentence-transformers, with the same batches."""

    def __init__(self, config: Config, ours: Ours, micro_batch_size: int) -> None:
        env.set_deepspeed_accelerator(cpu.device().type)  # otherwise DeepSpeed, imported below, prints to stdout
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses, modules
        from transformers import PreTrainedTokenizerFast

        model, length = config.model, config.model.sequence_length
        with tempfile.TemporaryDirectory() as folder:
            transformers_model(model, "gelu_new").transformer.save_pretrained(folder)
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=config.data.tokenizer, model_max_length=length)
            tokenizer.pad_token = END_OF_TEXT
            tokenizer.save_pretrained(folder)
            transformer = modules.Transformer(folder, max_seq_length=length)
        pooling = modules.Pooling(model.hidden_size, pooling_mode="lasttoken")
        self.model = SentenceTransformer(modules=[transformer, pooling, modules.Normalize()], device="cpu")
        self.loss = losses.CachedMultipleNegativesRankingLoss(
            self.model,
            scale=1 / TEMPERATURE,
            mini_batch_size=micro_batch_size,
            **SYMMETRIC,
        )
        self.adam = torch.optim.AdamW(self.model.parameters(), LR, fused=True)
        self.loader, self.size, self.number = ours.stage.loader, config.optim.global_batch_size, 0
        self.around = (config.embed.query_prefix, config.embed.query_suffix + END_OF_TEXT)
        self.around_document = (config.embed.document_prefix, config.embed.document_suffix + END_OF_TEXT)

    def step(self) -> None:
        """Learn from the next batch."""
        pairs = [self.loader.pairs["train"][index] for index in self.loader.batch(self.number * self.size)]
        self.number += 1
        texts = [[self.around[0] + pair.query + self.around[1] for pair in pairs]]
        texts.append([self.around_document[0] + pair.positive + self.around_document[1] for pair in pairs])
        self.adam.zero_grad()
        self.loss([self.model.preprocess(each) for each in texts], None).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()


def beside_peer(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of both sides, in turns, each with its fastest micro-batch; and their ratio."""
    ours, theirs = {}, {}
    for micro in args.micro_batches:
        config = settings(args, args.batch_size, micro)
        ours[micro] = Ours(config)
        theirs[micro] = Theirs(config, ours[micro], micro)
    tried = [{micro: seconds(side.step, 1) for micro, side in sides.items()} for sides in (ours, theirs)]
    best = [min(found, key=found.get) for found in tried]
    times: list[list[float]] = [[], []]
    for _ in range(args.repeats):
        for which, side in enumerate((ours[best[0]], theirs[best[1]])):
            times[which].append(seconds(side.step))
    medians = [statistics.median(each) for each in times]
    return {
        "sentence_transformers": importlib.metadata.version("sentence-transformers"),
        "model": args.model,
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "micro_batch_size": {"megagpt": best[0], "sentence_transformers": best[1]},
        "seconds": {"megagpt": medians[0], "sentence_transformers": medians[1]},
        "ratio": medians[1] / medians[0],
    }


def growth(args: argparse.Namespace) -> list[dict[str, float]]:
    """`grown` for every size, each in a new process, so that its peak memory comes only from its own steps."""
    found = []
    for size in args.growth:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            try:
                found.append(process.submit(grown, args, size).result())
            except BrokenProcessPool:
                raise MegaGPTError(
                    f"the process with --growth {size} was killed, perhaps because memory ran out: leave this size out"
                ) from None
    return found


def grown(args: argparse.Namespace, size: int) -> dict[str, float]:
    """Seconds per pair and peak memory of steps of `size` pairs, in micro-batches of the first size."""
    config = settings(args, size, args.micro_batches[0])
    try:
        launch.initialize(config.parallel, seed=0)
        side = Ours(config)
        times = [seconds(side.step) for _ in range(3)]
    finally:
        launch.shutdown()
    return {
        "batch_size": size,
        "seconds_per_pair": min(times[1:]) / size,
        "peak_memory_gib": peak_memory_gib(torch.device("cpu")),
    }


def seconds(step: Callable[[], None], warm_up: int = 0) -> float:
    """Seconds of one call, after `warm_up` calls."""
    for _ in range(warm_up):
        step()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_tool(main)
