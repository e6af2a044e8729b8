"""The parts of tools/gpu_check.py: each case measures something on the GPU, or rehearses it on the CPU at tiny sizes.

    python tools/gpu_parts.py generation gpt3_125m --device cuda --work /tmp/work --output runs/gpu_check

It appends a line of JSON for every case to --results (or prints it): the case, its result, seconds and figures. It ends
with exit code 3 at the first case that fails, because a process cannot continue after a CUDA error.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from megagpt import env
from megagpt.errors import MegaGPTError
from megagpt.log import run_tool

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "gpt3_125m": ["model=gpt3_125m", "parallel.micro_batch_size=16"],
    "gpt3_1_3b": ["model=gpt3_1_3b", "parallel.micro_batch_size=4"],
}
TINY = [
    "model=tiny",
    "model.num_layers=2",
    "model.sequence_length=32",
    "model.vocab_size=384",
    "model.init_std=0.2",  # so that every weight matters
    "parallel.micro_batch_size=2",
]
CHOSEN = ("tests/kernels",)
REHEARSED = ("tests/kernels/test_norm.py", "-k", "test_sums_over_many_rows_are_repeatable")
VERDICT = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] (?P<first>[A-Z]+) (?P<test>tests\S*)"  # by pytest-xdist
    r"|(?P<name>tests\S*).* (?P<last>PASSED|FAILED|ERROR|SKIPPED) .*\[ *\d+%\])",
    re.MULTILINE,
)
Figures = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Device, time limit and folders of a part."""

    device: str
    seconds: float
    """Time limit of the process, from its start; then it is killed."""
    work: Path
    output: Path

    @property
    def rehearses(self) -> bool:
        """Whether sizes are tiny."""
        return self.device == "cpu"

    def overrides(self, shape: str) -> list[str]:
        """Overrides for a model of this shape, or for a tiny model in a rehearsal."""
        return TINY if self.rehearses else SHAPES[shape]

    @cached_property
    def clock(self) -> Any:
        """Times calls on the device."""
        from bench_kernels import CudaClock

        return HostClock() if self.rehearses else CudaClock()

    @cached_property
    def limits(self) -> dict[str, float]:
        """Measured bytes per second of a copy, and operations per second of a matrix product."""
        from bench_kernels import measure_limits

        sizes = {"size": 64, "copied": 2**12} if self.rehearses else {}
        return measure_limits(self.clock, self.device, **sizes)


class HostClock:
    """`bench_kernels.Clock` of the CPU."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Time on the host."""
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Not measured on a CPU: 0."""
        run()
        return 0


def machine(case: str, setting: Setting) -> Figures:
    """Properties of the device, and its speed of copies and matrix products."""
    limits = setting.limits
    found = {"copy GB/s": limits["copy"] / 1e9, "bf16 matmul TFLOP/s": limits["matmul"] / 1e12}
    if setting.rehearses:
        return found
    device = torch.cuda.get_device_properties(0)
    return found | {
        "name": device.name,
        "compute capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory GiB": device.total_memory / 2**30,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def stages(case: str, setting: Setting) -> Figures:
    """A stage's smoke run."""
    import gpu_stages

    return gpu_stages.run(case, setting.work)


def tests(case: str, setting: Setting) -> Figures:
    """Run the tests marked `gpu` in parallel, because most of their time is compilation. Raises if one fails."""
    chosen = REHEARSED if setting.rehearses else (*CHOSEN, "--numprocesses", "8")
    command = [sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-p", "no:cacheprovider", *chosen]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    stopped = False
    try:
        said, _ = process.communicate(timeout=max(1.0, setting.seconds - time.monotonic() + STARTED - 5))
    except subprocess.TimeoutExpired:
        process.terminate()
        (said, _), stopped = process.communicate(), True
    print(said)
    return verdicts(said, stopped)


def verdicts(said: str, stopped: bool) -> Figures:
    """Numbers of passed and skipped tests in the output `said` of `pytest -vv`. Raises MegaGPTError if one failed.

    stopped: whether pytest was stopped at its time limit
    """
    found = [(m["first"] or m["last"], m["test"] or m["name"]) for m in VERDICT.finditer(said)]
    words = [word for word, _ in found]
    failed = [test for word, test in found if word in ("FAILED", "ERROR")]
    passed, skipped = words.count("PASSED"), words.count("SKIPPED")
    if failed or not passed:
        raise MegaGPTError(f"{passed} passed, {len(failed)} failed: {', '.join(failed[:20]) or said[-300:]}")
    return {"passed": passed, "skipped": skipped} | ({"note": "stopped when its time was over"} if stopped else {})


def kernels(case: str, setting: Setting) -> Figures:
    """Measure an op's problems whose case has the given beginning, with all peers. Raises if our results are wrong."""
    if setting.rehearses:
        env.interpret_kernels()
    import bench_kernels
    import torch._functorch.config
    from kernel_problems import OURS, PROBLEMS, Sizes

    torch._functorch.config.donated_buffer = False  # compiled backward passes are run repeatedly
    op, begins = case.split(": ")
    sizes = replace(Sizes(), sequences=(Sizes.target_sequence,))
    if setting.rehearses:
        sizes = Sizes("cpu", 16, 128, (16,), 16, 8, 128, 256, 48, 64, 2)
        bench_kernels.ROUNDS = (2, 2)
    figures = {}
    for problem in PROBLEMS[op](sizes):
        if not problem.case.startswith(begins):
            continue
        for record in bench_kernels.measure(problem, setting.clock, setting.limits):
            if "failed" in record:
                raise MegaGPTError(f"{record['op']}, {record['case']}: {record['failed']}")
            several = "" if begins else f"{record['op']} {record['case'].split(',')[0]} "
            about = several + record["direction"]
            figures[f"{about} ms"] = 1000 * record["seconds"][OURS]["median"]
            figures[f"{about} {record['unit']}"] = record["rate"][OURS]
            figures |= {f"{about} of {name}": value for name, value in record["fraction"].items()}
            figures |= {f"{about} {name} / ours": value for name, value in record["ratio"].items()}
            for target in record["targets"]:
                figures[f"{about} target {target['against']}"] = target["verdict"]
            figures |= {f"{about} {name}": f"not measured ({why})" for name, why in record["missing"].items()}
        if op == "cross_entropy":
            torch.compiler.reset()
    return figures


@contextmanager
def trained(shape: str, setting: Setting):
    """A context with (configuration, device, our step, its engine, batches) of tools/bench_train.py, on one rank."""
    import bench_train

    from megagpt.parallel import launch

    bench_train.SHAPES[shape] = setting.overrides(shape)
    config = bench_train.configuration(shape, "fp32" if setting.rehearses else "bf16")
    device = launch.initialize(config.parallel, config.seed)
    try:
        step, engine = bench_train.ours(config)
        yield config, device, step, engine, bench_train.make_batches(config, device)
    finally:
        launch.shutdown()


def training(case: str, setting: Setting) -> Figures:
    """Time our step and the step of a plain loop (compiled on a GPU), in turns."""
    import bench_train

    with trained(case, setting) as (config, device, step, engine, batches):
        makers = bench_train.contestants(config, device, bench_train.transformers_weights(engine))
        peer = "transformers" if setting.rehearses else "transformers compiled"
        with torch.device(device):  # initializing billions of weights takes long on the CPU
            steps = {"megagpt": step, peer: makers[peer]()}
        rounds = (4, 3) if setting.rehearses else (5, 12)
        tolerance = bench_train.TOLERANCE[config.optim.precision]
        seconds, cpu_seconds = bench_train.take_turns(steps, batches, *rounds, tolerance, case)
        result = bench_train.summary(config, seconds, cpu_seconds, dict.fromkeys(steps), device)
    figures = {}
    for name, measured in result["contestants"].items():
        figures[f"{name} step ms"] = 1000 * measured["step_seconds"]["median"]
        figures[f"{name} tokens/s"] = measured["tokens_per_second"]
        figures[f"{name} MFU"] = measured["mfu"]
    return figures | {f"{peer} / ours": result["ratio"][peer], "rounds": result["rounds"]}


@contextmanager
def generating(shape: str, setting: Setting):
    """A context with (generator of an untrained model, its tokenizer, bytes of its weights)."""
    from megagpt.config.load import load
    from megagpt.data.tokenizer import train_tokenizer
    from megagpt.model.generation import Generator
    from megagpt.parallel import launch
    from megagpt.parallel.megatron import MegatronEngine

    precision = "fp32" if setting.rehearses else "bf16"
    config = load([*setting.overrides(shape), f"optim.precision={precision}"])
    launch.initialize(config.parallel, config.seed)
    try:
        engine = MegatronEngine(config, objective=None, training=False)
        tokenizer = train_tokenizer(["the old river runs to the sea"] * 3, 280)
        weights = sum(parameter.nbytes for module in engine.modules for parameter in module.parameters())
        yield Generator(engine.modules, config, tokenizer), tokenizer, weights
    finally:
        launch.shutdown()


def generation(case: str, setting: Setting) -> Figures:
    """Tokens per second of an untrained model for 1 and 32 answers at a time, and the time to read its weights."""
    from megagpt.model.generation import GenerationConfig

    prompt, new, repeats = (4, 4, 2) if setting.rehearses else (128, 128, 3)
    figures = {}
    with generating(case, setting) as (generator, tokenizer, weights):
        generator_of = torch.Generator().manual_seed(0)
        for batch in (1, 32):
            prompts = torch.randint(tokenizer.vocab_size, (batch, prompt), generator=generator_of).tolist()
            times, made = [], 0
            for repeat in range(repeats + 1):  # the first time compiles
                began = time.perf_counter()
                answers = generator.generate(prompts, GenerationConfig(max_new_tokens=new, seed=repeat))
                times.append((time.perf_counter() - began) / max(len(answer.tokens) for answer in answers))
                made = statistics.mean(len(answer.tokens) for answer in answers)
            passed = statistics.median(times[1:])
            figures[f"batch {batch} tokens/s"] = batch / passed
            figures[f"batch {batch} ms a token"] = 1000 * passed
            figures[f"batch {batch} tokens an answer"] = made
        figures["weights at copy speed, ms"] = 1000 * weights / setting.limits["copy"]
    return figures


def profile(case: str, setting: Setting) -> Figures:
    """Profile a training step of 125M, or generated tokens."""
    import step_profile

    path = setting.output / f"{case.replace(' ', '_')}.json.gz"
    if case == "training step":
        with trained("gpt3_125m", setting) as (*_, step, _, batches):
            return step_profile.measure(partial(step, batches[0]), path, warm_up=3)
    from megagpt.model.generation import GenerationConfig

    with generating("gpt3_125m", setting) as (generator, tokenizer, _):
        prompts = [[number % tokenizer.vocab_size for number in range(first, first + 8)] for first in range(8)]
        settings = GenerationConfig(max_new_tokens=8)
        return step_profile.measure(lambda: generator.generate(prompts, settings), path, warm_up=2)


PARTS: dict[str, Callable[[str, Setting], Figures]] = {
    "machine": machine,
    "stages": stages,
    "tests": tests,
    "kernels": kernels,
    "training": training,
    "generation": generation,
    "profile": profile,
}
STARTED = time.monotonic()


def measure(part: str, case: str, setting: Setting) -> dict[str, Any]:
    """The result of a case."""
    began = time.monotonic()
    try:
        found = {"result": "measured", "figures": PARTS[part](case, setting)}
    except Exception as error:
        traceback.print_exc()
        found = {"result": "failed", "why": f"{type(error).__name__}: {error}"[:1000]}
    return {"case": case, **found, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """Run the cases of a part; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument(
        "--seconds", type=float, default=480, help="until this process is killed (default: %(default)s)"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--output", type=Path, required=True, help="folder for traces")
    parser.add_argument("--results", type=Path, help="file for the lines (default: the standard output)")
    options = parser.parse_args()
    if options.device == "cpu":
        env.become_rank(0, 1, gpus=False)
    setting = Setting(options.device, options.seconds, options.work, options.output)
    for case in options.cases:
        result = measure(options.part, case, setting)
        line = json.dumps(result)
        if options.results:
            with options.results.open("a") as file:
                file.write(line + "\n")
        else:
            print(line)
        if result["result"] == "failed":
            return 3
    return 0


if __name__ == "__main__":
    run_tool(main)
