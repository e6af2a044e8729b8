"""Reads run folders, also of runs that are still running, were interrupted or were never evaluated."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.errors import DataError
from megagpt.train.metrics import read_jsonl

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The content of a run folder. A field is empty if its file is missing or unreadable."""

    name: str
    """Name of the folder, made unique among the runs that are read together."""
    train: list[dict[str, Any]]
    """Training lines of metrics.jsonl, one per step, ascending."""
    validation: list[dict[str, Any]]
    """Evaluation lines of metrics.jsonl, one per step, ascending."""
    tasks: list[dict[str, Any]]
    """Lines of metrics.jsonl about in-context tasks, one per step, ascending."""
    config: dict[str, Any]
    """config.yaml, flattened: "optim.lr" -> 6e-4."""
    evaluation: dict[str, Any]
    """evaluation.json: the last evaluation, with bits per byte of gzip and xz for the same text."""
    before: dict[str, Any]
    """evaluation_before.json: the same metrics of the initial model, if they were measured."""
    samples: list[dict[str, Any]]
    """samples.jsonl: the generated texts of the newest step."""
    samples_before: list[dict[str, Any]]
    """samples_before.jsonl: texts of the initial model, if it wrote any."""
    instructions: dict[str, Any]
    """Metrics in instructions/result.json, by kind: how many held-out instructions the model follows."""
    answers: list[dict[str, Any]]
    """instructions/samples.jsonl: the model's answers to them."""
    about: dict[str, Any]
    """run.json: command, versions, device, ranks."""


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def quantity(value: Any) -> str:
    """Three significant digits with an SI-like suffix: 1.23M."""
    value = number(value)
    if value is None:
        return ""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def read_runs(folders: list[Path]) -> list[Run]:
    """Read run folders. Raises DataError for a folder without metrics."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict whose keys are joined by dots."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _read_run(folder: Path, name: str) -> Run:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise DataError(f"{folder} is not a run folder: it has no metrics.jsonl. Give the folder that training wrote.")
    lines = [line for line in read_jsonl(metrics) if number(line.get("step")) is not None]
    train = _by_step(line for line in lines if "loss" in line)
    validation = _by_step(line for line in lines if any(key.startswith("validation_") for key in line))
    tasks = _by_step(line for line in lines if any(key.startswith("task_") for key in line))
    if not train and not validation:
        raise DataError(f"{metrics} holds no metrics yet: make the report when the run has logged its first step.")
    samples = _lines(folder / "samples.jsonl")
    newest = max((number(sample.get("step")) or 0 for sample in samples), default=0)
    return Run(
        name=name,
        train=train,
        validation=validation,
        tasks=tasks,
        config=flatten(_mapping(folder / "config.yaml")),
        evaluation=_mapping(folder / "evaluation.json"),
        before=_mapping(folder / "evaluation_before.json"),
        samples=[sample for sample in samples if (number(sample.get("step")) or 0) == newest],
        samples_before=_lines(folder / "samples_before.jsonl"),
        instructions=_mapping(folder / "instructions" / "result.json").get("metrics", {}),
        answers=_lines(folder / "instructions" / "samples.jsonl"),
        about=_mapping(folder / "run.json"),
    )


def _by_step(lines: Any) -> list[dict[str, Any]]:
    """The last line of each step, in ascending order of steps."""
    steps = {line["step"]: line for line in lines}
    return [steps[step] for step in sorted(steps)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, read with a safe loader; {} if the file is missing or broken."""
    import yaml

    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s cannot be read and is left out: %s", path, error)
        return {}
    return value if isinstance(value, dict) else {}
