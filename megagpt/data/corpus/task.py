"""Base of steps that do the whole work of a datatrove task. Importing this module needs datatrove."""

import json
import os
from abc import abstractmethod
from collections import Counter
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from megagpt.data.files import write_atomic


class Task(PipelineStep):
    """Reads its input from the work folder and writes its output there, together with its CPU seconds."""

    def __init__(self, work: Path):
        super().__init__()
        self.work = work

    @abstractmethod
    def do(self, rank: int, tasks: int) -> dict[str, float] | None:
        """Do task `rank` of `tasks`. It may be repeated. Returns the CPU seconds of its parts by name, if any."""

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Pass nothing on."""
        yield from data or ()
        began = _cpu_seconds()
        parts = self.do(rank, world_size) or {}
        seconds = {"": _cpu_seconds() - began} | parts
        path = self.work / "seconds" / self.name / f"{rank:06d}.json"
        write_atomic(path, json.dumps(seconds).encode())


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its child processes that have ended."""
    return sum(os.times()[:4])


def read_seconds(work: Path) -> dict[str, dict[str, float]]:
    """{step: {part: CPU seconds}} over all tasks so far; the part `total` is the whole step."""
    total: dict[str, Counter[str]] = {}
    for path in sorted((work / "seconds").glob("*/*.json")):
        total.setdefault(path.parent.name, Counter()).update(json.loads(path.read_bytes()))
    return {
        name: {part or "total": round(seconds, 3) for part, seconds in sorted(parts.items())}
        for name, parts in total.items()
    }
