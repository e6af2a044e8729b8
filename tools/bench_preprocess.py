"""Time preprocessing, all reading and writing included, against the tokenizers library called directly.

    python tools/bench_preprocess.py --output docs/benchmarks/preprocess_cpu.json
    python tools/bench_preprocess.py --memory-mb 100 1000

Both get the same documents (the Python standard library's source, repeated) and as many cores. The library runs
`encode_batch`, and `encode_batch_fast` for information, on documents that are in memory already and throws the result
away. They take turns; medians are compared, and fewer than 0.9 of encode_batch's MB/s fail the command. CPU time is
given too: on a machine that is busy with other things it is the steadier measure.

With --memory-mb it measures instead the largest memory of the parent and of a worker, for inputs of these sizes.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from megagpt.data.preprocess import preprocess
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import DataError
from megagpt.log import run_tool

REQUIRED = 0.9
DIRECT = """
import json, sys, time
import tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
documents = [json.loads(line)["text"] for line in open(sys.argv[2], "rb")]
encode = getattr(tokenizer, sys.argv[3])
start, cpu, tokens = time.perf_counter(), time.process_time(), 0
for first in range(0, len(documents), 1000):
    batch = encode(documents[first : first + 1000], add_special_tokens=False)
    tokens += sum(map(len, batch))
print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, tokens]))
"""


def write_input(path: Path, megabytes: float) -> tuple[int, int]:
    """Write jsonl of about this size: (documents, bytes of text)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for file in sorted(root.rglob("*.py")):
        text = file.read_bytes().decode(errors="ignore").replace("\0", "")
        if "-packages" not in str(file) and text.strip():
            texts.append(text)
    documents = size = 0
    with path.open("w") as output:
        while size < megabytes * 1e6:
            text = texts[documents % len(texts)]
            output.write(json.dumps({"text": text}) + "\n")
            documents, size = documents + 1, size + len(text.encode())
    return documents, size


def direct(method: str, tokenizer: Path, source: Path, cores: int) -> tuple[float, float, int]:
    """(seconds, seconds of CPU time, tokens) of the library alone, in a process of its own."""
    variables = [f"RAYON_NUM_THREADS={cores}", "TOKENIZERS_PARALLELISM=true"]
    command = ["env", *variables, sys.executable, "-c", DIRECT, str(tokenizer), str(source), method]
    seconds, cpu, tokens = json.loads(subprocess.check_output(command))
    return seconds, cpu, tokens


def ours(tokenizer: Path, source: Path, output: Path, cores: int) -> tuple[float, float, int]:
    """The same of preprocessing, its worker processes and their start included; without end-of-text tokens."""
    start, cpu = time.perf_counter(), cpu_seconds()
    about = preprocess([source], tokenizer, output, workers=cores)
    return time.perf_counter() - start, cpu_seconds() - cpu, about["tokens"] - about["documents"]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in usage)


def speed(folder: Path, tokenizer: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the repeats, in MB of text a second and core, by the clock and by CPU time."""
    source = folder / "input.jsonl"
    documents, size = write_input(source, options.mb)
    seconds: dict[str, list[float]] = {"preprocess": [], "encode_batch": [], "encode_batch_fast": []}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    for repeat in range(options.repeats):
        expected = None
        first = repeat % len(seconds)  # each is first in turn, lest a rising or falling load favour one
        for name in (*list(seconds)[first:], *list(seconds)[:first]):
            if name == "preprocess":
                taken, used, tokens = ours(tokenizer, source, folder / f"out{repeat}", options.cores)
            else:
                taken, used, tokens = direct(name, tokenizer, source, options.cores)
            seconds[name].append(taken)
            cpu[name].append(used)
            expected = expected or tokens
            if tokens != expected:
                raise DataError(f"{name} gives {tokens} tokens, and another {expected}")
        print(f"repeat {repeat}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    rates = {name: size / 1e6 / statistics.median(values) / options.cores for name, values in seconds.items()}
    cpu_rates = {name: size / 1e6 / statistics.median(values) for name, values in cpu.items()}
    return {
        "mb_per_second_per_core": {name: round(rate, 3) for name, rate in rates.items()},
        "mb_per_cpu_second": {name: round(rate, 3) for name, rate in cpu_rates.items()},
        "ratio": round(rates["preprocess"] / rates["encode_batch"], 3),
        "ratio_by_cpu_time": round(cpu_rates["preprocess"] / cpu_rates["encode_batch"], 3),
        "ratio_to_encode_batch_fast": round(rates["preprocess"] / rates["encode_batch_fast"], 3),
        "ratio_to_encode_batch_fast_by_cpu_time": round(cpu_rates["preprocess"] / cpu_rates["encode_batch_fast"], 3),
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "cpu_seconds": {name: [round(value, 3) for value in values] for name, values in cpu.items()},
        "documents": documents,
        "bytes": size,
        "cores": options.cores,
    }


def machine() -> dict[str, str]:
    """What the figures were measured on, and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    versions = {name: importlib.metadata.version(name) for name in ("tokenizers", "numpy")}
    return {
        "cpu": model,
        "python": platform.python_version(),
        **versions,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "tools/bench_preprocess.py", *sys.argv[1:]]),
    }


def peak_memory(folder: Path, tokenizer: Path, megabytes: float, cores: int) -> tuple[float, float]:
    """Largest resident memory of the parent and of any worker, in MB, while an input of this size is tokenized."""
    source = folder / "input.jsonl"
    write_input(source, megabytes)
    command = [sys.executable, "-m", "megagpt.cli", "data", "preprocess", source, "--tokenizer", tokenizer]
    command += ["--output", folder / "out", "--workers", cores]
    peaks: dict[str, float] = {}
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in (str(process.pid), *children):
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue  # it ended
                if "VmHWM:" in status:
                    peaks[pid] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
            time.sleep(0.05)
    if process.returncode:
        raise DataError(f"megagpt data preprocess failed with exit code {process.returncode}")
    parent = peaks.pop(str(process.pid))
    return parent, max(peaks.values())


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=24, help="size of the input (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="workers, and threads (default: %(default)s)")
    parser.add_argument("--memory-mb", type=float, nargs="+", help="measure memory for inputs of these sizes instead")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "train.jsonl", 8)
        texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
        trained: Tokenizer = train_tokenizer(texts, 8192)
        trained.save(tokenizer := folder / "tokenizer.json")
        if options.memory_mb:
            for megabytes in options.memory_mb:
                parent, worker = peak_memory(folder, tokenizer, megabytes, options.cores)
                print(f"{megabytes:.0f} MB: parent {parent:.0f} MB, largest worker {worker:.0f} MB")
            return 0
        result = speed(folder, tokenizer, options)
    print(f"ratio {result['ratio']}, by CPU time {result['ratio_by_cpu_time']}", result["mb_per_second_per_core"])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(machine() | result, indent=1) + "\n")
    return 0 if result["ratio"] >= REQUIRED else 1


if __name__ == "__main__":
    run_tool(main)
