"""Time `megagpt data preprocess`, all reading and writing included, by GigaToken and by the tokenizers library.

    python tools/bench_preprocess.py --output docs/benchmarks/preprocess_cpu.json
    python tools/bench_preprocess.py --memory-mb 100 1000

Four take turns on the same documents with as many cores: the command with either library (--engine), and the library
tokenizers itself, `encode_batch` and `encode_batch_fast`, on documents that are in memory already, whose result is
thrown away. All must give as many tokens. Medians are compared. The tool fails where GigaToken gets less than 20 MB
through in a second of CPU time, or the tokenizers library less than 0.9 of encode_batch's MB/s. CPU time is steadier
on a machine that is busy with other things. Then one process does what the command's processes do, stage by
stage, and the CPU time of each stage is given.

The documents are the Python standard library's source, repeated; GigaToken remembers words, so in each repetition one
word in 20 is spelled anew (--new-words). With --memory-mb the largest memory of the parent and of a worker is measured
instead, for inputs of these sizes in which all words are new.
"""

import argparse
import json
import random
import re
import resource
import statistics
import string
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measured_on import measured_on

from megagpt.data import indexed
from megagpt.data.engines import EngineName, choose_engine, make_encoder
from megagpt.data.files import write_atomic
from megagpt.data.preprocess import MAX_RECORD_MB
from megagpt.data.readers import Position, chunks, documents, find_sources
from megagpt.data.tokenizer import Tokenizer, train_tokenizer
from megagpt.errors import DataError
from megagpt.log import run_tool

REQUIRED = 0.9
REQUIRED_MB = 20.0
COMMANDS: dict[str, EngineName] = {"preprocess": "gigatoken", "preprocess_by_tokenizers": "tokenizers"}
CALLS = ("encode_batch", "encode_batch_fast")
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


class Run(NamedTuple):
    """What one run took, and gave."""

    seconds: float
    cpu_seconds: float
    tokens: int
    """Without end-of-text tokens."""
    parent_mb: float | None = None
    worker_mb: float | None = None
    """Largest resident memory of the command's parent process, and of any of its workers."""


def standard_library() -> list[str]:
    """The standard library's source files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if "-packages" not in str(file)]
    texts = [file.read_bytes().decode(errors="ignore").replace("\0", "") for file in files]
    return [text for text in texts if text.strip()]


def respelled(text: str, chance: random.Random, share: float) -> str:
    """`text` with this share of its words in other letters, the same ones within a text."""
    letters = list(string.ascii_lowercase)
    chance.shuffle(letters)
    table = str.maketrans(string.ascii_letters, "".join(letters) + "".join(letters).upper())
    if share >= 1:
        return text.translate(table)
    return re.sub(r"[A-Za-z]+", lambda word: word[0].translate(table) if chance.random() < share else word[0], text)


def write_input(path: Path, megabytes: float, new_words: float) -> tuple[int, int]:
    """Write jsonl of about this size: (documents, bytes of text)."""
    texts, chance = standard_library(), random.Random(0)
    count = size = 0
    with path.open("w") as output:
        while size < megabytes * 1e6:
            text = texts[count % len(texts)]
            if count >= len(texts):
                text = respelled(text, chance, new_words)
            output.write(json.dumps({"text": text}) + "\n")
            count, size = count + 1, size + len(text.encode())
    return count, size


def direct(method: str, tokenizer: Path, source: Path, cores: int) -> Run:
    """The library alone, in a process of its own."""
    variables = [f"RAYON_NUM_THREADS={cores}", "TOKENIZERS_PARALLELISM=true"]
    command = ["env", *variables, sys.executable, "-c", DIRECT, str(tokenizer), str(source), method]
    return Run(*json.loads(subprocess.check_output(command)))


def ours(engine: EngineName, tokenizer: Path, source: Path, output: Path, cores: int) -> Run:
    """The command, its start and its worker processes included."""
    command = [sys.executable, "-m", "megagpt.cli", "data", "preprocess", source, "--tokenizer", tokenizer]
    command += ["--output", output, "--workers", cores, "--engine", engine]
    start, cpu = time.perf_counter(), children_cpu_seconds()
    peaks: dict[int, float] = {}
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peaks |= peak_memory(process.pid)
            time.sleep(0.05)
    if process.returncode:
        raise DataError(f"megagpt data preprocess failed with exit code {process.returncode}")
    seconds, cpu = time.perf_counter() - start, children_cpu_seconds() - cpu
    about = indexed.read_about(output)
    parent = peaks.pop(process.pid)
    return Run(seconds, cpu, about["tokens"] - about["documents"], parent, max(peaks.values(), default=0.0))


def peak_memory(pid: int) -> dict[int, float]:
    """Largest resident memory so far of a process and of each of its children, in MB."""
    peaks = {}
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return {}  # it has just ended
    for name in (str(pid), *children):
        try:
            status = Path(f"/proc/{name}/status").read_text()
        except OSError:
            continue
        if "VmHWM:" in status:
            peaks[int(name)] = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return peaks


def children_cpu_seconds() -> float:
    """CPU time of this process's children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stages(engine: EngineName, tokenizer: Path, source: Path, output: Path) -> dict[str, float]:
    """Seconds of CPU time of each stage where one process does them all, chunk by chunk."""
    known = Tokenizer.load(tokenizer)
    encode = make_encoder(known, choose_engine(known, engine))
    limit = int(MAX_RECORD_MB * 1e6)
    spent = dict.fromkeys(("reading", "parsing", "tokenizing", "writing", "joining"), 0.0)
    begun = time.process_time()

    def lap(stage: str) -> None:
        nonlocal begun
        now = time.process_time()
        spent[stage] += now - begun
        begun = now

    parts: list[tuple[np.ndarray, Path]] = []
    for number, chunk in enumerate(chunks(find_sources([source]), "text", limit, Position())):
        lap("reading")
        texts = [text for item in chunk.items for text in documents(item, "text", limit) if isinstance(text, str)]
        lap("parsing")
        encoded = encode(texts)
        lap("tokenizing")
        dtype = indexed.token_dtype(known.vocab_size)
        parts.append((np.array(list(map(len, encoded)), "<i4"), output.with_name(f"{output.name}.{number}")))
        write_atomic(parts[-1][1], *(ids.astype(dtype).data for ids in encoded))
        lap("writing")
    pairs: Iterator[tuple[np.ndarray, np.ndarray]] = ((n, np.fromfile(path, dtype)) for n, path in parts)
    about = {"tokenizer_sha256": known.sha256, "vocab_size": known.vocab_size}
    indexed.write_corpus(output, pairs, sum(len(lengths) for lengths, _ in parts), about)
    lap("joining")
    return spent


def speed(folder: Path, tokenizer: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the repeats, in MB of text a second and core, by the clock and by CPU time."""
    source = folder / "input.jsonl"
    count, size = write_input(source, options.mb, options.new_words)
    names = (*COMMANDS, *CALLS)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for repeat in range(options.repeats):
        first = repeat % len(names)  # each is first in turn, lest a rising or falling load favour one
        for name in (*names[first:], *names[:first]):
            if name in COMMANDS:
                output = folder / f"{name}{repeat}"
                runs[name].append(ours(COMMANDS[name], tokenizer, source, output, options.cores))
            else:
                runs[name].append(direct(name, tokenizer, source, options.cores))
        tokens = {name: values[-1].tokens for name, values in runs.items()}
        if len(set(tokens.values())) > 1:
            raise DataError(f"not all give as many tokens: {tokens}")
        print(f"repeat {repeat}: " + ", ".join(f"{name} {values[-1].seconds:.2f} s" for name, values in runs.items()))
    megabytes = size / 1e6
    rates = {n: megabytes / statistics.median(r.seconds for r in runs[n]) / options.cores for n in names}
    cpu_rates = {n: megabytes / statistics.median(r.cpu_seconds for r in runs[n]) for n in names}
    shares = {name: stages(engine, tokenizer, source, folder / f"staged_{name}") for name, engine in COMMANDS.items()}
    return {
        "mb_per_second_per_core": {name: round(rate, 3) for name, rate in rates.items()},
        "mb_per_cpu_second": {name: round(rate, 3) for name, rate in cpu_rates.items()},
        "ratio_by_tokenizers": round(rates["preprocess_by_tokenizers"] / rates["encode_batch"], 3),
        "ratio_by_tokenizers_by_cpu_time": round(cpu_rates["preprocess_by_tokenizers"] / cpu_rates["encode_batch"], 3),
        "peak_mb": {
            name: {"parent": max(r.parent_mb for r in runs[name]), "worker": max(r.worker_mb for r in runs[name])}
            for name in COMMANDS
        },
        "cpu_ms_per_mb": {
            name: {stage: round(1000 * value / megabytes, 3) for stage, value in spent.items()}
            for name, spent in shares.items()
        },
        "seconds": {name: [round(run.seconds, 3) for run in runs[name]] for name in names},
        "cpu_seconds": {name: [round(run.cpu_seconds, 3) for run in runs[name]] for name in names},
        "documents": count,
        "bytes": size,
        "cores": options.cores,
    }


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=200, help="size of the input (default: %(default)s)")
    parser.add_argument("--new-words", type=float, default=0.05, help="share of them (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the tokenizer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=4, help="runs of each (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="workers, and threads (default: %(default)s)")
    parser.add_argument("--memory-mb", type=float, nargs="+", help="measure memory for inputs of these sizes instead")
    parser.add_argument("--engine", choices=COMMANDS.values(), default="gigatoken", help="whose memory is measured")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained: Tokenizer = train_tokenizer(standard_library(), options.vocab_size)
        trained.save(tokenizer := folder / "tokenizer.json")
        if options.memory_mb:
            for megabytes in options.memory_mb:
                write_input(source := folder / "input.jsonl", megabytes, 1.0)
                run = ours(options.engine, tokenizer, source, folder / "out", options.cores)
                print(f"{megabytes:.0f} MB: parent {run.parent_mb:.0f} MB, largest worker {run.worker_mb:.0f} MB")
            return 0
        result = speed(folder, tokenizer, options)
    rates = result["mb_per_cpu_second"]
    print("MB a second and core:", result["mb_per_second_per_core"], "\nMB a CPU second:", rates)
    print("CPU time by stage, ms a MB:", result["cpu_ms_per_mb"])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(measured_on("gigatoken", "tokenizers", "numpy") | result, indent=1) + "\n")
    return 0 if rates["preprocess"] >= REQUIRED_MB and result["ratio_by_tokenizers"] >= REQUIRED else 1


if __name__ == "__main__":
    run_tool(main)
