"""Compare our training step with a plain loop over transformers' GPT2LMHeadModel, in the same process and in turns.

    python tools/bench_train.py --output docs/benchmarks
    python tools/bench_train.py --shapes demo --precision bf16 --threads 2

Both train the same model on the same batches from the same weights, without dropout and with dense layers: forward and
backward pass, gradient clipping and fused AdamW, and both read the loss. The plain loop is typical hand-written code:
SDPA, clip_grad_norm_, zero_grad(set_to_none). It runs with transformers' default GELU, and once more with PyTorch's
fused GELU (`gelu_pytorch_tanh`, the same function as `gelu_new`); on CUDA also through torch.compile. In bf16 ours has
bf16 weights with fp32 master weights and gradients; the plain loop has fp32 weights under bf16 autocast.

They take turns step by step, so that other load on the machine affects all equally. A ratio is the median over rounds
of their seconds divided by ours. The command fails if losses or gradient norms differ, or a ratio is too low.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measured_on import measured_on

from megagpt.checkpoint.convert.hugging_face import parts
from megagpt.config.load import load
from megagpt.config.schema import Config, ModelConfig
from megagpt.data.batch import Batch
from megagpt.errors import MegaGPTError
from megagpt.log import progress, run_tool
from megagpt.model.parameters import named_boxes
from megagpt.parallel import launch
from megagpt.parallel.megatron import MegatronEngine
from megagpt.train.flops import device_peak_tflops, mfu
from megagpt.train.objectives import LanguageModelObjective

SHAPES = {
    "demo": ["experiment=demo", "model=demo", "optim=demo", "parallel.micro_batch_size=8"],
    # The published model on short sequences, so that a step takes seconds on a CPU.
    "gpt3_125m_short": ["model=gpt3_125m", "model.sequence_length=256", "parallel.micro_batch_size=2"],
    "gpt3_125m": ["model=gpt3_125m", "parallel.micro_batch_size=16"],
}
COMMON = ["model.attention_pattern=[dense]", "model.hidden_dropout=0", "model.attention_dropout=0"]
REQUIRED = {"cpu": ("transformers", 1.0), "cuda": ("transformers compiled", 1.1)}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
LEARNING_RATE = 3e-4
BATCHES = 4

Step = Callable[[Batch], tuple[float, float]]
"""One training step: loss before it, gradient norm before clipping."""
Times = dict[str, list[float]]
"""Seconds of every step, by the name of the contestant."""


def configuration(shape: str, precision: str) -> Config:
    """The configuration of a shape. The vocabulary of both models is a multiple of 128, for fast matrix products."""
    overrides = [*SHAPES[shape], *COMMON, f"optim.precision={precision}"]
    padded = load(overrides).model.padded_vocab_size
    return load([*overrides, f"model.vocab_size={padded}"])


def make_batches(config: Config, device: torch.device) -> list[Batch]:
    """Batches of random tokens, since speed does not depend on the tokens."""
    size, length = config.parallel.micro_batch_size, config.model.sequence_length
    generator = torch.Generator().manual_seed(config.seed)
    positions = torch.arange(length).expand(size, length).contiguous()
    batches = []
    for _ in range(BATCHES):
        tokens = torch.randint(config.model.vocab_size, (size, length + 1), generator=generator)
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        batches.append(Batch(inputs, labels, torch.ones(size, length), positions, None).to(device))
    return batches


def ours(config: Config) -> tuple[Step, MegatronEngine]:
    """Our step and the engine that makes it."""
    engine = MegatronEngine(config, LanguageModelObjective())

    def step(batch: Batch) -> tuple[float, float]:
        result = engine.train_step(iter([batch]), 1, LEARNING_RATE)
        return result.loss, result.grad_norm

    return step, engine


def transformers_weights(engine: MegatronEngine) -> dict[str, torch.Tensor]:
    """Our weights under GPT2LMHeadModel's names, as it lays them out, in fp32."""
    weights = {
        part.name: part.take(parameter.detach().float()).clone()
        for name, parameter, _ in named_boxes(engine.modules)
        for part in parts("GPT2LMHeadModel", name, tuple(parameter.shape), engine.config.model)
    }
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def transformers_model(model: ModelConfig, activation: str) -> torch.nn.Module:
    """GPT2LMHeadModel of our model's size, in fp32, ready to train."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.sequence_length,
        n_embd=model.hidden_size,
        n_layer=model.num_layers,
        n_head=model.num_attention_heads,
        n_inner=model.ffn_size,
        layer_norm_epsilon=model.norm_epsilon,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(settings).train()


def plain_loop(
    config: Config,
    device: torch.device,
    weights: dict[str, torch.Tensor] | None,
    activation: str,
    compiled: bool = False,
) -> Step:
    """The step of a loop written by hand over GPT2LMHeadModel, with the optimizer's settings of `config`."""
    optim = config.optim
    model = transformers_model(config.model, activation).to(device)
    if weights is not None:
        model.load_state_dict(weights)
    parameters = list(model.parameters())
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    bf16 = optim.precision == "bf16"

    def step(batch: Batch) -> tuple[float, float]:
        # On a CPU our engine redirects Megatron-Core's CUDA calls by a mode that slows every call a little. A plain
        # loop would not have this mode.
        with torch._C.DisableTorchFunction() if device.type == "cpu" else nullcontext():
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                loss = forward(batch.tokens, labels=batch.labels, shift_labels=batch.labels).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, optim.clip_grad)
            adam.step()
            adam.zero_grad(set_to_none=True)
            return loss.item(), norm.item()

    return step


def contestants(config: Config, device: torch.device, weights: dict[str, torch.Tensor] | None) -> dict[str, Callable]:
    """{name: function that makes the step} of each plain loop. weights: None takes transformers' initial weights"""
    makers = {
        "transformers": partial(plain_loop, config, device, weights, "gelu_new"),
        "transformers fused gelu": partial(plain_loop, config, device, weights, "gelu_pytorch_tanh"),
    }
    if device.type == "cuda":
        makers["transformers compiled"] = partial(plain_loop, config, device, weights, "gelu_new", compiled=True)
    return makers


def wait(device: torch.device) -> None:
    """Let the device finish, so that the clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def agree(step: int, values: dict[str, tuple[float, float]], tolerance: float) -> None:
    """Raise MegaGPTError if a model's loss or gradient norm differs from ours."""
    loss, norm = values["megagpt"]
    for name, (other_loss, other_norm) in values.items():
        if abs(other_loss / loss - 1) > tolerance or abs(other_norm / norm - 1) > 10 * tolerance:
            raise MegaGPTError(
                f"step {step}: {name} has loss {other_loss:.5f} and gradient norm {other_norm:.4f}, megagpt {loss:.5f} "
                f"and {norm:.4f}: these are not the same model, so nothing is reported"
            )


def take_turns(
    steps: dict[str, Step], batches: list[Batch], warmup: int, rounds: int, tolerance: float, title: str
) -> tuple[Times, Times]:
    """(seconds, CPU seconds) of every step. All take one step, then all the next, each time in another order."""
    device = batches[0].tokens.device
    names, seconds, cpu_seconds = list(steps), {name: [] for name in steps}, {name: [] for name in steps}
    with progress(warmup + rounds, "steps", title) as bar:
        for number in range(warmup + rounds):
            values, batch = {}, batches[number % len(batches)]
            first = number % len(names)
            for name in names[first:] + names[:first]:
                wait(device)
                start, cpu_start = time.perf_counter(), time.process_time()
                values[name] = steps[name](batch)
                wait(device)
                if number >= warmup:
                    seconds[name].append(time.perf_counter() - start)
                    cpu_seconds[name].append(time.process_time() - cpu_start)
            if number < len(batches):  # later, rounding errors have accumulated
                agree(number, values, tolerance)
            bar.update(1)
            bar.set_postfix({name: f"{times[-1]:.3f}s" for name, times in seconds.items() if times}, refresh=False)
    return seconds, cpu_seconds


def summary(config: Config, seconds: Times, cpu_seconds: Times, peaks: dict[str, float], device: torch.device) -> dict:
    """Figures of every contestant, and ratios of theirs to ours."""
    tokens = config.parallel.micro_batch_size * config.model.sequence_length
    known = device.type == "cuda"
    peak = device_peak_tflops(torch.cuda.get_device_name(), config.optim.precision) if known else None
    result: dict[str, Any] = {
        "micro_batch_size": config.parallel.micro_batch_size,
        "sequence_length": config.model.sequence_length,
        "vocab_size": config.model.vocab_size,
        "rounds": len(seconds["megagpt"]),
        "contestants": {},
        "ratio": ratios(seconds),
        "ratio_of_cpu_seconds": ratios(cpu_seconds),
    }
    for name, times in seconds.items():
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        result["contestants"][name] = {
            "tokens_per_second": round(tokens / median, 1),
            "step_seconds": {"median": round(median, 5), "quartiles": [round(low, 5), round(high, 5)]},
            "cpu_seconds": round(statistics.median(cpu_seconds[name]), 5),
            "mfu": mfu(config.model, tokens / median, 1, peak),
            "peak_memory_gib": peaks[name],
        }
    return result


def ratios(seconds: Times) -> dict[str, float]:
    """Median over rounds of their seconds divided by ours. Above 1, ours is faster."""
    ours = seconds["megagpt"]
    return {
        name: round(statistics.median(a / b for a, b in zip(times, ours, strict=True)), 3)
        for name, times in seconds.items()
        if name != "megagpt"
    }


def peak_memory(name: str, shape: str, precision: str, threads: int) -> float:
    """Peak memory in GiB of two steps of one contestant in this process; on a CPU, of the whole process."""
    torch.set_num_threads(threads)
    config = configuration(shape, precision)
    device = launch.initialize(config.parallel, config.seed)
    step = ours(config)[0] if name == "megagpt" else contestants(config, device, None)[name]()
    for batch in make_batches(config, device)[:2]:
        step(batch)
    launch.shutdown()
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    status = Path("/proc/self/status").read_text()  # getrusage would return the parent's peak if that is larger
    return round(int(status.split("VmHWM:")[1].split()[0]) / 2**20, 3)


def peak_memories(names: list[str], shape: str, precision: str, threads: int) -> dict[str, float]:
    """`peak_memory` of every contestant, each in a new process."""
    peaks = {}
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            peaks[name] = alone.apply(peak_memory, (name, shape, precision, threads))
    return peaks


def measure(shape: str, precision: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All contestants on one shape."""
    config = configuration(shape, precision)
    our_step, engine = ours(config)
    makers = contestants(config, device, transformers_weights(engine))
    steps = {"megagpt": our_step} | {name: make() for name, make in makers.items()}
    batches, tolerance = make_batches(config, device), TOLERANCE[precision]
    title = f"{shape} {precision}"
    seconds, cpu_seconds = take_turns(steps, batches, options.warmup, options.rounds, tolerance, title)
    peaks = peak_memories(list(steps), shape, precision, options.threads)
    return summary(config, seconds, cpu_seconds, peaks, device)


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Device, threads and versions of the measurement."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "threads": threads} | measured_on("torch", "transformers", "megatron-core")


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    shapes, precisions = (["demo", "gpt3_125m"], ["bf16"]) if gpu else (["demo", "gpt3_125m_short"], ["fp32"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=shapes, help="(default: %(default)s)")
    parser.add_argument("--precision", nargs="+", choices=TOLERANCE, default=precisions, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="steps that count (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the result, train_<device>.json")
    return parser.parse_args()


def measure_all(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the machine, the result of every shape and precision). Each result is printed when it is ready."""
    torch.set_num_threads(options.threads)
    device = launch.initialize(configuration(options.shapes[0], options.precision[0]).parallel, seed=0)
    results = {}
    try:
        for shape in options.shapes:
            for precision in options.precision:
                result = results[f"{shape} {precision}"] = measure(shape, precision, options, device)
                for name, figures in result["contestants"].items():
                    against = f", ratio {result['ratio'][name]}" if name in result["ratio"] else ""
                    print(f"{shape} {precision}: {name} {figures['tokens_per_second']:.0f} tokens/s{against}")
        return machine(device, options.threads), results
    finally:
        launch.shutdown()


def main() -> int:
    """Measure, print, write."""
    options = parse()
    about, results = measure_all(options)
    if options.output:
        name = re.sub(r"[^a-z0-9]+", "_", about["device"].lower()).strip("_")
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"train_{name}.json").write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    rival, required = REQUIRED["cpu" if about["device"] == "cpu" else "cuda"]
    slow = [name for name, result in results.items() if result["ratio"][rival] < required]
    if slow:
        print(f"too slow ({', '.join(slow)}): the ratio to {rival} must be at least {required}")
    return int(bool(slow))


if __name__ == "__main__":
    run_tool(main)
