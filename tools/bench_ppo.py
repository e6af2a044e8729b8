"""Measure the parts of a PPO iteration, and compare the speed of its generation with transformers.

    python tools/bench_ppo.py runs/ppo --output docs/benchmarks/ppo_cpu.json

The parts come from the run's metrics: medians over its iterations. For the speed, the run's policy answers prompts of
random words, in turns by this project's generator and by transformers' `generate` on the same weights, sampling from
all tokens. Tokens count up to and including the end of an answer. `generation` is one batch; `rollout` is as many
prompts as an iteration has, in its batches, which transformers also gets sorted by length. Figures are medians over the
repetitions.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megagpt import env
from megagpt.checkpoint.convert.convert import convert
from megagpt.config.load import from_dict
from megagpt.config.load import read as read_config
from megagpt.config.schema import ParallelConfig
from megagpt.data.chat import Message, chat_prompt
from megagpt.data.instructions import WORDS
from megagpt.data.tokenizer import Tokenizer
from megagpt.errors import ConfigError
from megagpt.log import run_tool
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel import launch
from megagpt.stages.weights import load_model
from megagpt.train.metrics import read_jsonl


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of stage ppo")
    parser.add_argument("--batch-size", type=int, default=32, help="answers at a time (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="times that each generates (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if env.world_size() > 1:
        raise ConfigError(f"this runs on one rank, not {env.world_size()}: start it without torchrun")
    try:
        result = machine() | {"iteration": iteration(args.run)} | generation(args)
    finally:
        launch.shutdown()
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Device, package versions, date and command."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def iteration(run: Path) -> dict[str, float]:
    """Median seconds of an iteration's parts, and generated tokens per second.

    Raises ConfigError for a run of fewer than 3 iterations.
    """
    groups: list[list[dict[str, Any]]] = []
    for line in read_jsonl(run / "metrics.jsonl"):
        if "rollout_seconds" in line:
            groups.append([])
        if groups and "step_seconds" in line:
            groups[-1].append(line)
    if len(groups) < 3:
        raise ConfigError(f"{run} has {len(groups)} iterations of PPO; it needs 3 or more")
    groups = groups[1:]  # the first one allocates
    firsts = [group[0] for group in groups]
    episodes = from_dict(read_config(run / "config.yaml")).ppo.rollout_batch_size
    median = statistics.median
    whole = median(sum(line["step_seconds"] for line in group) for group in groups)
    rollout, scoring = (median(line[f"{name}_seconds"] for line in firsts) for name in ("rollout", "scoring"))
    return {
        "iterations": len(groups),
        "episodes": episodes,
        "seconds": whole,
        "rollout_seconds": rollout,
        "scoring_seconds": scoring,
        "update_seconds": whole - rollout - scoring,
        "generated_tokens_per_second": median(
            line["response_tokens"] * episodes / line["rollout_seconds"] for line in firsts
        ),
    }


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of both generators on the run's policy, and their ratio, for one batch and for an iteration."""
    config, engine, tokenizer = load_model(args.run, ParallelConfig())
    with tempfile.TemporaryDirectory() as folder:
        convert(args.run, Path(folder) / "hf", "huggingface", prove=False)
        peer = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf").eval()
    ppo = config.ppo
    cases = {
        "generation": (args.batch_size, args.batch_size, args.new_tokens),
        "rollout": (ppo.rollout_batch_size, ppo.generation_batch_size, ppo.max_new_tokens),
    }
    result = {}
    for name, (count, batch_size, new_tokens) in cases.items():
        generator = Generator(engine.modules, config, tokenizer, batch_size)
        speeds = compare(generator, peer, random_prompts(tokenizer, count), new_tokens, args.repeats)
        result[name] = {
            "prompts": count,
            "batch_size": batch_size,
            "new_tokens": new_tokens,
            "repeats": args.repeats,
            "tokens_per_second": speeds,
            "ratio": speeds["megagpt"] / speeds["transformers"],
        }
    return result


def random_prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Token ids of requests to say 2 to 8 random words."""
    words = random.Random(0)
    return [
        chat_prompt(tokenizer, [Message("user", "Say: " + " ".join(words.choices(WORDS, k=words.randint(2, 8))))])
        for _ in range(count)
    ]


def compare(
    generator: Generator, peer: PreTrainedModel, prompts: list[list[int]], new_tokens: int, repeats: int
) -> dict[str, float]:
    """Median tokens per second of this project's generator and of transformers' `generate`."""
    settings = GenerationConfig(max_new_tokens=new_tokens)
    end = generator.tokenizer.end_of_text_id
    batches = []
    by_length = sorted(prompts, key=len, reverse=True)
    for start in range(0, len(prompts), generator.batch_size):
        batch = by_length[start : start + generator.batch_size]
        tokens = torch.tensor([[end] * (len(batch[0]) - len(prompt)) + prompt for prompt in batch])
        seen = torch.tensor([[0] * (len(batch[0]) - len(prompt)) + [1] * len(prompt) for prompt in batch])
        batches.append((tokens, seen))

    def ours(seed: int) -> int:
        seeds = range(seed * len(prompts), (seed + 1) * len(prompts))
        return sum(len(answer.tokens) for answer in generator.generate(prompts, settings, list(seeds)))

    @torch.no_grad()
    def theirs(seed: int) -> int:
        torch.manual_seed(seed)
        count = 0
        for tokens, seen in batches:
            made = peer.generate(
                tokens,
                attention_mask=seen,
                do_sample=True,
                top_k=0,
                max_new_tokens=new_tokens,
                eos_token_id=end,
                pad_token_id=end,
            )[:, tokens.shape[1] :]
            count += int((made != end).sum()) + int((made == end).any(1).sum())
        return count

    speeds: dict[str, list[float]] = {"megagpt": [], "transformers": []}
    for seed in range(repeats + 1):  # the first time warms up
        for name, function in (("megagpt", ours), ("transformers", theirs)):
            speeds[name].append(speed(function, seed))
    return {name: statistics.median(values[1:]) for name, values in speeds.items()}


def speed(function: Callable[[int], int], seed: int) -> float:
    """Tokens per second of one call."""
    started = time.perf_counter()
    made = function(seed)
    return made / (time.perf_counter() - started)


if __name__ == "__main__":
    run_tool(main)
