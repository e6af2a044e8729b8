"""Check and measure all parts of megagpt that need a GPU in a short time, the most important parts first.

    python tools/gpu_check.py --minutes 8 --output gpu_check
    python tools/gpu_check.py --device cpu --minutes 8 --output rehearsal

The parts are: a smoke step of every stage; the tests marked `gpu`; the kernels compared with FlashAttention-2 and cuDNN
at the sizes of docs/benchmarks/kernels.md; a training step compared with a compiled loop of plain PyTorch; generated
tokens per second; and a profile of a step. Each part has a time limit and runs in a separate process, which is killed
when the time is over or a case hangs. A case that fails or crashes does not affect the others. Later parts get the
unused time of earlier ones.

Files in the output folder: gpu_check.jsonl has the machine in its first line, then a line for every finished case;
gpu_check.md has the same for people; gpu_check.log has the output of the parts; and there are traces of the profiled
steps.

Without a GPU every case is "not measured", which is not an error. `--device cpu` rehearses all parts on tiny sizes to
test the check itself; its figures mean nothing else. The exit code is 1 if a case failed.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measured_on import measured_on

from megagpt.log import run_tool

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tools/gpu_parts.py"
POLL_SECONDS = 0.2
CASE_FAILED = 3
"""Exit code of a worker with a failed case whose result was written."""
PACKAGES = ("torch", "triton", "transformers", "megatron-core", "numpy")
Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Cases that run one after another in one separate process."""

    name: str
    minutes: float
    """Its share of eight minutes."""
    case_seconds: float
    """A case hangs if there is no result for this time. Imports and compilation count."""
    cases: tuple[str, ...]


PARTS = (
    Part("machine", 0.5, 60, ("limits",)),
    Part("stages", 1.6, 90, ("pretrain", "code", "sft", "reward", "ppo", "embed", "generate")),
    Part("tests", 1.6, 180, ("pytest -m gpu",)),
    Part(
        "kernels",
        1.5,
        75,
        (
            "attention: causal, head dim 128",
            "attention: causal, head dim 64",
            "norm: LayerNorm,",
            "cross_entropy: ",
            "attention: window",
            "norm: RMSNorm",
            "attention: full, head dim 128",
            "softmax: ",
            "activation: bias + GELU",
            "decode: ",
        ),
    ),
    Part("training", 1.6, 120, ("gpt3_125m", "gpt3_1_3b")),
    Part("generation", 0.6, 60, ("gpt3_125m", "gpt3_1_3b")),
    Part("profile", 0.6, 60, ("training step", "generated tokens")),
)


@dataclass
class Results:
    """Results of all cases. Each is written at once."""

    folder: Path
    about: Record
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu_check.jsonl").write_text(json.dumps(self.about) + "\n")

    def add(self, record: Record) -> None:
        """Write a result to both files, and print it."""
        self.records.append(record)
        with (self.folder / "gpu_check.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        (self.folder / "gpu_check.md").write_text(page(self.about, self.records))
        print(row(record), flush=True)


def page(about: Record, records: Sequence[Record]) -> str:
    """All results as Markdown."""
    lines = ["# GPU check", ""]
    if about["device"] == "cpu":
        lines += ["A rehearsal on tiny sizes: the figures only prove that the check works.", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "| part | case | result | seconds | figures |", "| --- | --- | --- | ---: | --- |"]
    return "\n".join([*lines, *map(row, records)]) + "\n"


def row(record: Record) -> str:
    """A row of the table."""
    figures = "; ".join(f"{name} {shown(value)}" for name, value in record.get("figures", {}).items())
    text = figures or record.get("why", "")
    cells = [record["part"], record["case"].strip(" :,"), record["result"], shown(record.get("seconds", "")), text]
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def shown(value: object) -> str:
    """A figure with four digits, or text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_new(path: Path, position: int) -> tuple[list[Record], int]:
    """(objects of the whole lines of a JSON lines file from a position on, position after them)."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], position + len(whole)


def kill(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGABRT)  # faulthandler then prints the stack of every thread
    with suppress(subprocess.TimeoutExpired):
        process.wait(2)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Runner:
    """Runs each part in a separate process."""

    device: str
    folder: Path
    """Output folder."""
    work: Path
    """Folder for files that cases share: data and small runs."""
    worker: Path = WORKER

    def run(self, part: Part, deadline: float) -> Iterator[Record]:
        """Results of a part's cases as they end. All cases have a result by `deadline` (of `time.monotonic`)."""
        waiting = list(part.cases)
        while waiting and deadline - time.monotonic() > 1:
            why = yield from self._attempt(part, waiting, deadline)
            if why:  # the case that was running failed
                yield {"part": part.name, "case": waiting.pop(0), "result": "failed", "why": why}
        for case in waiting:
            yield not_measured(part, case, "no time was left")

    def _attempt(self, part: Part, waiting: list[str], deadline: float) -> Generator[Record, None, str | None]:
        """Results from one process. Finished cases are removed from `waiting`. Returns the reason if the next case
        failed, else None."""
        results = self.work / f"{part.name}.jsonl"
        results.unlink(missing_ok=True)
        left = str(max(1, int(deadline - time.monotonic())))
        command = [sys.executable, "-u", "-X", "faulthandler", str(self.worker), part.name, *waiting]
        command += [
            "--device",
            self.device,
            "--seconds",
            left,
            "--work",
            str(self.work),
            "--output",
            str(self.folder),
            "--results",
            str(results),
        ]
        position, last, why = 0, time.monotonic(), None
        with (self.folder / "gpu_check.log").open("a+b") as log:
            log.write(f"\n== {part.name}: {', '.join(waiting)}\n".encode())
            log.flush()
            begun = log.tell()
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
            running = True
            while running:
                running = process.poll() is None
                new, position = read_new(results, position)
                for record in new:
                    waiting.remove(record["case"])
                    last = time.monotonic()
                    yield {"part": part.name} | record
                late = time.monotonic() > deadline
                if running and (late or time.monotonic() - last > part.case_seconds):
                    kill(process)
                    return None if late else f"no result within {part.case_seconds:.0f} s"
                time.sleep(POLL_SECONDS * running)
            if process.returncode not in (0, CASE_FAILED):
                log.seek(begun)
                said = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                why = f"the process ended with status {process.returncode}: {said[-1][:300]}"
        return why if waiting else None


def not_measured(part: Part, case: str, why: str) -> Record:
    """The result of a case that did not run to its end."""
    return {"part": part.name, "case": case, "result": "not measured", "why": why}


def has_gpu() -> bool:
    """Whether PyTorch sees a CUDA device. Another process checks, so that this one creates no context on the device."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def output_of(command: Sequence[str]) -> str | None:
    """First line of a command's output; None if the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[0] if done.returncode == 0 else None


def version(package: str) -> str | None:
    """Version of an installed package, else None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def about(options: argparse.Namespace, gpu: bool) -> Record:
    """Machine, versions, time and options. Unknown values are None."""
    asked = "name,driver_version,memory.total,power.limit"
    smi = output_of(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]) if gpu else None
    return {
        "device": options.device,
        "gpu": smi if gpu else "none",
        **measured_on(),
        **{name: version(name) for name in PACKAGES},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": options.commit or output_of(["git", "rev-parse", "HEAD"]),
        "minutes": options.minutes,
    }


def check(options: argparse.Namespace, parts: Sequence[Part] = PARTS, worker: Path = WORKER) -> list[Record]:
    """Run the parts; returns all results."""
    began = time.monotonic()
    gpu = options.device == "cuda" and has_gpu()
    results = Results(options.output.resolve(), about(options, gpu))
    scale, given = options.minutes / sum(part.minutes for part in parts), 0.0
    with tempfile.TemporaryDirectory() as work:
        runner = Runner(options.device, results.folder, Path(work), worker)
        for part in parts:
            given += part.minutes * scale
            if options.device == "cuda" and not gpu:
                for case in part.cases:
                    results.add(not_measured(part, case, "there is no CUDA device"))
                continue
            for record in runner.run(part, began + 60 * given):
                results.add(record)
    return results.records


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="all parts together (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses (default: %(default)s)"
    )
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="only this; repeatable")
    parser.add_argument("--commit", help="commit of the code, if its folder has no history")
    options = parser.parse_args()
    chosen = [part for part in PARTS if not options.part or part.name in options.part]
    records = check(options, chosen)
    counts = {kind: sum(r["result"] == kind for r in records) for kind in ("measured", "failed", "not measured")}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()) + f"; see {options.output}/gpu_check.md")
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    run_tool(main)
