"""Time `megagpt data preprocess`, with all reading and writing, for GigaToken and for the tokenizers library.

    python tools/bench_preprocess.py --output docs/benchmarks/preprocess_cpu.json
    python tools/bench_preprocess.py --memory-mb 100 1000

Four methods take turns on the same documents with the same cores: the command with either library (--engine), and the
library tokenizers alone, by `encode_batch` and `encode_batch_fast`, on documents in memory and with the result thrown
away. All must give the same number of tokens. Medians are compared. The tool fails if GigaToken processes less than 20
MB per second of CPU time, or if the command with tokenizers has less than 0.9 of encode_batch's MB/s. CPU time varies
less on a busy machine. Then a single process runs the stages of the command one after the other, to measure the CPU
time of each stage.

The documents are the Python standard library's source, repeated. GigaToken caches words, so each repetition changes the
letters of one word in 20 (--new-words). With --memory-mb it measures the peak memory of the parent and of a worker
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
    """Time, tokens and memory of one run."""

    seconds: float
    cpu_seconds: float
    tokens: int
    """Number of tokens without end-of-text."""
    parent_mb: float | None = None
    """Peak resident memory of the command's parent process."""
    worker_mb: float | None = None
    """Largest peak resident memory of its workers."""


def standard_library() -> list[str]:
    """The standard library's source files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if "-packages" not in str(file)]
    texts = [file.read_bytes().decode(errors="ignore").replace("\0", "") for file in files]
    return [text for text in texts if text.strip()]


def respelled(text: str, chance: random.Random, share: float) -> str:
    """`text` with this share of its words in permuted letters, with one permutation per text."""
    letters = list(string.ascii_lowercase)
    chance.shuffle(letters)
    table = str.maketrans(string.ascii_letters, "".join(letters) + "".join(letters).upper())
    if share >= 1:
        return text.translate(table)
    return re.sub(r"[A-Za-z]+", lambda word: word[0].translate(table) if chance.random() < share else word[0], text)


def write_input(path: Path, megabytes: float, new_words: float) -> tuple[int, int]:
    """Write jsonl of about this size. Returns (number of documents, bytes of text)."""
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
    """Run the library alone, in a separate process."""
    variables = [f"RAYON_NUM_THREADS={cores}", "TOKENIZERS_PARALLELISM=true"]
    command = ["env", *variables, sys.executable, "-c", DIRECT, str(tokenizer), str(source), method]
    return Run(*json.loads(subprocess.check_output(command)))


def ours(engine: EngineName, tokenizer: Path, source: Path, output: Path, cores: int) -> Run:
    """Run the command; its start and its worker processes count."""
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
    """{process id: peak resident memory so far in MB} of a process and its children."""
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
    """CPU seconds of this process's descendants that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stages(engine: EngineName, tokenizer: Path, source: Path, output: Path) -> dict[str, float]:
    """CPU seconds of each stage when one process runs them all, chunk by chunk."""
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
    """Medians over the repeats, in MB of text per second and core, by wall-clock time and by CPU time."""
    source = folder / "input.jsonl"
    count, size = write_input(source, options.mb, options.new_words)
    names = (*COMMANDS, *CALLS)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for repeat in range(options.repeats):
        first = repeat % len(names)  # each is first in turn, so that a changing load favours none
        for name in (*names[first:], *names[:first]):
            if name in COMMANDS:
                output = folder / f"{name}{repeat}"
                runs[name].append(ours(COMMANDS[name], tokenizer, source, output, options.cores))
            else:
                runs[name].append(direct(name, tokenizer, source, options.cores))
        tokens = {name: values[-1].tokens for name, values in runs.items()}
        if len(set(tokens.values())) > 1:
            raise DataError(f"the methods give different numbers of tokens: {tokens}")
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
    parser.add_argument("--new-words", type=float, default=0.05, help="share of changed words (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=8192, help="tokens of the tokenizer (default: %(default)s)")
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
