"""Measure time and peak memory of a conversion both ways, and compare them with plain safetensors.

    python tools/bench_convert.py --output docs/benchmarks/convert_cpu.json
    python tools/bench_convert.py --folder scratch model=gpt3_125m 'model.attention_pattern=[dense]'

A checkpoint of a random model (by default GPT-3's 1.3B, in fp32) is converted to a folder for transformers and back,
each in a separate process, without the proof of equality. The peer loads and saves the same tensors with
safetensors.torch. The memory that --dry-run predicts is written beside the measured one. The tool needs free disk space
of five times the model. The command fails if memory exceeds 1.5 times the largest tensor plus 2 GiB, or if the round
trip changes a tensor. Banded layers do not come back bit for bit, because GPT-Neo lacks biases.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measured_on import measured_on

from megagpt.checkpoint.convert import native
from megagpt.checkpoint.convert.base import TensorInfo
from megagpt.checkpoint.convert.common import LazySource, parameters
from megagpt.checkpoint.convert.dry_run import dry_run
from megagpt.config.load import load
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError
from megagpt.log import progress, run_tool

CONVERT = ("-m", "megagpt.cli", "checkpoint", "convert")
FIXED = 2 << 30
PEER = """
import sys
from safetensors.torch import load_file, save_file
save_file(load_file(sys.argv[1]), sys.argv[2])
"""


def main() -> int:
    """Measure, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=["model=gpt3_1_3b", "model.attention_pattern=[dense]"])
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    model = load([*args.overrides, "data.corpora=[]"]).model
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measured_on("torch", "safetensors") | measure(model, Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    return any(result[way]["peak_mib"] > result["limit_mib"] for way in ("to_huggingface", "back"))


def measure(model: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Time and memory of each way and of the peer. Raises CheckpointError when the round trip changes a tensor.

    Leaves three folders in `folder`: the checkpoint `run`, `hf` for transformers, and the checkpoint `back` made of it.
    """
    source = random_source(model, dtype)
    size = sum(info.size for info in source.tensors.values())
    largest = max(info.size for info in source.tensors.values())
    (folder / "run").mkdir()
    with progress(size, "B", "random model") as bar:
        native.write(source, folder / "run", bar)

    def convert(start: str, end: str, to: str) -> dict[str, float]:
        predicted = {"predicted_peak_mib": dry_run(folder / start, folder / end, to).memory / 2**20}
        return timed([*CONVERT, folder / start, folder / end, "--to", to, "--no-verify"], size) | predicted

    results = {"to_huggingface": convert("run", "hf", "huggingface"), "back": convert("hf", "back", "megagpt")}
    first, second = (native.open_source(folder / run, None) for run in ("run", "back"))
    if not all(torch.equal(first.read(name), second.read(name)) for name in source.tensors):
        raise CheckpointError("the round trip changed a tensor")
    files = sorted((folder / "hf").glob("*.safetensors"))
    results["safetensors_load_and_save"] = timed(["-c", PEER, files[0], folder / "peer"], files[0].stat().st_size)
    return {
        "parameters": size // dtype.itemsize,
        "megabytes": size / 1e6,
        "largest_tensor_mib": largest / 2**20,
        "limit_mib": (1.5 * largest + FIXED) / 2**20,
        **results,
    }


def random_source(model: ModelConfig, dtype: torch.dtype) -> LazySource:
    """A model of random numbers, the padding of its vocabulary zero; each tensor is drawn when it is read."""
    tensors = {f"model/{name}": TensorInfo(shape, dtype) for name, shape in parameters(model).items()}

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        value = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)), dtype=dtype)
        if shape[0] == model.padded_vocab_size:
            value[model.vocab_size :] = 0.0
        return value

    readers = {name: lambda name=name, info=info: draw(name, info.shape) for name, info in tensors.items()}
    return LazySource(Path("random"), "random", model, 0, tensors, readers)


MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""A small process between this one and the measured one: Linux includes the parent's memory in a process's peak."""


def timed(command: list[Any], size: int) -> dict[str, float]:
    """Seconds, those of the CPU, MB/s and peak memory of a Python process that moves `size` bytes."""
    command = [sys.executable, *map(str, command)]
    measured = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, text=True, check=True)
    code, seconds, cpu_seconds, kibibytes = measured.stdout.split()
    if int(code):
        raise CheckpointError(f"{shlex.join(command)} failed")
    return {
        "seconds": float(seconds),
        "cpu_seconds": float(cpu_seconds),
        "mb_per_second": size / float(seconds) / 1e6,
        "peak_mib": int(kibibytes) / 1024,
    }


if __name__ == "__main__":
    run_tool(main)
