"""Measure tokens per second of continuous batching and of the server, and compare with transformers.

    python tools/bench_serve.py engine --output docs/benchmarks/serve_engine_cpu.json
    python tools/bench_serve.py models runs/bench_serve
    python tools/bench_serve.py http URL URL --models run runs/bench_serve/transformers

`engine` runs in one process, with the same random weights and threads for all sides. Clients that each send one request
after another are served by a `ContinuousBatch` (continuous), by batches that begin together and wait for their longest
completion (static), and by transformers' continuous batching. `http` queries two running servers, ours first, whose
models have the same weights, such as the models that `models` writes: each client streams one completion after another.
Prompts are texts, answers are greedy. All sides get the same requests, in turns, after a warm-up. Figures are medians
over the rounds.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measured_on import measured_on

from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import ConfigError, MegaGPTError
from megagpt.log import run_tool
from megagpt.model.generation_config import GenerationConfig

CLIENTS = (1, 8, 32)
WORDS = ("time", "river", "stone", "light", "green", "small", "walks", "under", "never", "seven", "house", "cloud")


class Job(NamedTuple):
    """One request."""

    prompt: str
    new_tokens: int


def make_jobs(count: int, seed: int) -> list[Job]:
    """Requests of 4 to 60 words, for 16 to 96 tokens."""
    draw = random.Random(seed)
    return [Job(" ".join(draw.choices(WORDS, k=draw.randint(4, 60))), draw.randint(16, 96)) for _ in range(count)]


# In one process


def save_models(folder: Path, size: str) -> tuple[Path, Path]:
    """A run of random weights in the shape `size`, and the same for transformers."""
    from megagpt.checkpoint import Checkpointer
    from megagpt.checkpoint.convert.convert import convert
    from megagpt.config.load import load, to_dict
    from megagpt.parallel import launch
    from megagpt.parallel.megatron import MegatronEngine

    run = folder / "run"
    run.mkdir(parents=True)
    config = load([f"model={size}", "model.attention_pattern=[dense]", "optim.precision=fp32", "model.init_std=0.1"])
    texts = (path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parents[1].glob("*.py")))
    tokenizer = train_tokenizer(texts, config.model.vocab_size)
    if tokenizer.vocab_size != config.model.vocab_size:  # transformers would write the tokens that have no text
        raise ConfigError(f"the standard library gives {tokenizer.vocab_size} tokens, not {config.model.vocab_size}")
    tokenizer.save(run / "tokenizer.json")
    launch.initialize(config.parallel, config.seed)
    engine = MegatronEngine(config, objective=None, training=False)
    with Checkpointer(run / "checkpoints", config.checkpoint) as checkpointer:
        checkpointer.save(1, engine.shards(for_saving=True), {}, {}, {"config": to_dict(config)})
    convert(run, folder / "transformers", "huggingface", prove=False)
    return run, folder / "transformers"


def engine(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the three sides in this process. Raises MegaGPTError if they write different tokens."""
    from transformers import AutoModelForCausalLM

    from megagpt.config.schema import ParallelConfig
    from megagpt.model.generation import Generator
    from megagpt.stages.weights import load_model

    with tempfile.TemporaryDirectory() as folder:
        run, exported = save_models(Path(folder), args.size)
        config, loaded, tokenizer = load_model(run, ParallelConfig())
        peer = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    ours = Generator(loaded.modules, config, tokenizer)
    result: dict[str, Any] = {"size": args.size, "rounds": args.rounds, "threads": torch.get_num_threads()}
    for clients in CLIENTS:
        count = max(4, 2 * clients, args.jobs * clients // CLIENTS[-1])
        sides: dict[str, Callable[[list[Job]], tuple[list[list[int]], float]]] = {
            "continuous": lambda jobs, rows=clients: continuous(ours, jobs, rows, at_once=len(jobs)),
            "static": lambda jobs, rows=clients: continuous(ours, jobs, rows, at_once=rows),
            "transformers": lambda jobs, rows=clients: transformers_batching(peer, tokenizer, jobs, rows),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.rounds + 1):  # the first warms up
            jobs, answers = make_jobs(count, number), {}
            for name in sorted(sides, reverse=number % 2 == 1):
                answers[name], seconds = sides[name](jobs)
                rates[name].append(sum(map(len, answers[name])) / seconds)
            if any(answer != answers["static"] for answer in answers.values()):
                raise MegaGPTError(f"the sides wrote different tokens with {clients} clients in round {number}")
        result[f"{clients} clients"] = {
            "requests": count,
            "tokens_per_second": {name: statistics.median(values[1:]) for name, values in rates.items()},
            "times_transformers": statistics.median(rates["continuous"][1:])
            / statistics.median(rates["transformers"][1:]),
        }
        print(json.dumps(result[f"{clients} clients"]), flush=True)
    return measured_on("torch", "transformers") | result


def continuous(generator: Any, jobs: list[Job], rows: int, at_once: int) -> tuple[list[list[int]], float]:
    """(new tokens of every job, seconds). Groups of `at_once` jobs are added together, after all earlier ones end."""
    from megagpt.model.continuous_batching import ContinuousBatch
    from megagpt.model.staged_model import for_generation

    batch, made, begun = ContinuousBatch(generator, rows, None, 512), [], time.perf_counter()
    with for_generation(generator.modules):
        for first in range(0, len(jobs), at_once):
            for prompt, new_tokens in jobs[first : first + at_once]:
                settings = GenerationConfig(new_tokens, temperature=0.0)
                made.append(generator.row(len(made), generator.tokenizer.encode(prompt), settings))
                batch.add(made[-1])
            while batch.busy:
                batch.step()
    return [row.tokens for row in made], time.perf_counter() - begun


def transformers_batching(peer: Any, tokenizer: Tokenizer, jobs: list[Job], rows: int) -> tuple[list[list[int]], float]:
    """As `continuous`, by transformers, with `rows` requests at the same time. Its thread starts before the timing."""
    from transformers import ContinuousBatchingConfig
    from transformers import GenerationConfig as TheirConfig

    settings = TheirConfig(
        do_sample=False, eos_token_id=tokenizer.end_of_text_id, pad_token_id=tokenizer.end_of_text_id
    )
    made: dict[str, list[int]] = {}
    # By default it would take most of the memory; a page holds the tokens of one request.
    memory = ContinuousBatchingConfig(num_blocks=2 * rows, max_batch_tokens=512)
    batching = {"generation_config": settings, "continuous_batching_config": memory}
    with peer.continuous_batching_context_manager(**batching) as manager:
        manager.add_request(tokenizer.encode(jobs[0].prompt), "first", max_new_tokens=4)
        while (result := manager.get_result(timeout=60)) is not None and not result.is_finished():
            pass
        begun = time.perf_counter()
        coming = [(str(number), job) for number, job in enumerate(jobs)]
        for request, job in coming[:rows]:
            manager.add_request(tokenizer.encode(job.prompt), request, max_new_tokens=job.new_tokens)
        coming = coming[rows:]
        while len(made) < len(jobs):
            result = manager.get_result(timeout=60)
            if result is None:
                raise MegaGPTError("transformers gave no result for a minute")
            if result.is_finished():
                made[result.request_id] = result.generated_tokens
                if coming:
                    request, job = coming.pop(0)
                    manager.add_request(tokenizer.encode(job.prompt), request, max_new_tokens=job.new_tokens)
        seconds = time.perf_counter() - begun
    return [made[str(number)] for number in range(len(jobs))], seconds


# Over HTTP


class Asked(NamedTuple):
    """Tokens and time of one request."""

    tokens: int
    first_seconds: float
    """Seconds to the first text."""


async def ask(client: Any, url: str, model: str, job: Job) -> Asked:
    """Stream a completion. Raises MegaGPTError for any other answer."""
    body = {
        "model": model,
        "prompt": job.prompt,
        "max_tokens": job.new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, usage = time.perf_counter(), None, None
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise MegaGPTError(f"{url} answers {response.status_code}: {(await response.aread())[:500]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise MegaGPTError(f"{url} fails: {chunk['error']}")
            usage = chunk.get("usage") or usage
            if first is None and any(choice["text"] for choice in chunk["choices"]):
                first = time.perf_counter() - begun
    if usage is None:
        raise MegaGPTError(f"{url} does not say how many tokens it wrote")
    return Asked(usage["completion_tokens"], time.perf_counter() - begun if first is None else first)


async def load(url: str, model: str, jobs: list[Job], clients: int) -> tuple[float, list[float]]:
    """(tokens per second of `clients` clients that share the jobs, seconds to the first text of each request)."""
    import httpx

    coming, asked = list(reversed(jobs)), []
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients)) as client:

        async def one() -> None:
            while coming:
                asked.append(await ask(client, url, model, coming.pop()))

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds = time.perf_counter() - begun
    return sum(each.tokens for each in asked) / seconds, [each.first_seconds for each in asked]


def http(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both servers, in turns."""
    if len(args.models) != len(args.urls):
        raise ConfigError(f"there are {len(args.urls)} servers, but --models names {len(args.models)}")
    servers = list(zip(("megagpt", "transformers"), args.urls, args.models, strict=True))
    result: dict[str, Any] = {"rounds": args.rounds}
    for clients in CLIENTS:
        count = max(4, 2 * clients, args.jobs * clients // CLIENTS[-1])
        rates: dict[str, list[float]] = {name: [] for name, _, _ in servers}
        firsts: dict[str, list[float]] = {name: [] for name, _, _ in servers}
        for number in range(args.rounds + 1):  # the first warms up
            for name, url, model in servers[:: -1 if number % 2 else 1]:
                rate, seconds = asyncio.run(load(url, model, make_jobs(count, number), clients))
                if number:
                    rates[name].append(rate)
                    firsts[name] += seconds
        result[f"{clients} clients"] = {
            "requests": count,
            "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
            "seconds_to_first_text": {name: statistics.median(values) for name, values in firsts.items()},
            "times_transformers": statistics.median(rates["megagpt"]) / statistics.median(rates["transformers"]),
        }
        print(json.dumps(result[f"{clients} clients"]), flush=True)
    return measured_on("torch", "transformers", "httpx") | result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    inside = modes.add_parser("engine", help="in one process")
    outside = modes.add_parser("http", help="over HTTP")
    outside.add_argument("urls", nargs=2, metavar="URL", help="base address of megagpt's server, then of the other")
    outside.add_argument("--models", nargs=2, required=True, metavar="ID", help="names of the model there")
    models = modes.add_parser("models", help="write a run of random weights and the same for transformers, for http")
    models.add_argument("folder", type=Path)
    for mode in (inside, models):
        mode.add_argument("--size", default="demo", help="shape of the model (default: %(default)s)")
    for mode in (inside, outside):
        mode.add_argument(
            "--jobs", type=int, default=64, help="requests of 32 clients in a round (default: %(default)s)"
        )
        mode.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
        mode.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.mode == "models":
        print(*save_models(args.folder, args.size))
        return
    result = engine(args) if args.mode == "engine" else http(args)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
