"""Writes and reads the results of an in-context evaluation: the tasks' figures and every example.

    OUTPUT/request.json                     the request (megagpt/evaluate/output_folder.py)
           examples/TASK_8shot.jsonl        one line per example: the fields of ExampleOutcome
           examples/TASK_8shot.json         the other fields of TaskOutcome; written last, so it marks a finished task
           result.json                      the request, versions, and one TaskResult per task and number of shots

Numbers that JSON does not have are the strings "nan", "inf" and "-inf" in the files of examples, and null in
result.json.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from megagpt.data.files import atomic_file, file_sha256, write_atomic
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.intervals import RESAMPLES, Interval
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome
from megagpt.evaluate.in_context.summary import (
    CORPUS_RESAMPLES,
    CorpusMetric,
    Measure,
    Subset,
    TaskResult,
    summarize,
)
from megagpt.evaluate.output_folder import write_result

KIND = "in_context"
"""Value of the key `kind` that identifies result.json."""

LIBRARIES = ("lm-eval", "numpy", "sacrebleu")
"""Libraries whose versions are recorded, in addition to those of every evaluation."""


@dataclass(frozen=True)
class Result:
    """A finished evaluation."""

    folder: Path
    name: str
    """Short name, unique among the results that are read together."""
    about: dict[str, Any]
    """The content of result.json without the tasks: protocol, checkpoint, layout, seeds, versions, work."""
    tasks: list[TaskResult]

    @property
    def checkpoint(self) -> dict[str, Any]:
        """The result of `describe_checkpoint`; empty if no checkpoint was evaluated."""
        return self.about.get("checkpoint") or {}

    def outcome(self, task: TaskResult) -> TaskOutcome:
        """A task with its examples, read from their file. Raises DataError for a broken file."""
        return read_outcome(self.folder, task.task, task.shots)


def describe_checkpoint(folder: Path, parameters: int) -> dict[str, Any]:
    """The entry `checkpoint` of a request. parameters: the model's. Raises CheckpointError and DataError."""
    from megagpt.checkpoint import read_manifest  # here, because reports do without PyTorch

    manifest = read_manifest(folder)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return {
        "folder": str(folder),
        "manifest_sha256": file_sha256(folder / "manifest.json"),
        "run": manifest.get("run"),
        "model": manifest.get("config", {}).get("model", {}).get("name"),
        "step": manifest["step"],
        "tokens": state.get("tokens"),
        "parameters": parameters,
    }


def save_outcome(folder: Path, outcome: TaskOutcome) -> None:
    """Write a task's examples into an output folder, so that an interrupted evaluation does not run them again.

    Raises DataError when that fails.
    """
    with atomic_file(_examples_file(folder, outcome.task, outcome.shots)) as file:
        for example in outcome.examples:
            # Not asdict, which would copy every prompt.
            line = {field.name: getattr(example, field.name) for field in fields(example)}
            file.write(json.dumps(_with_words(line)).encode() + b"\n")
    rest = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
    rest = _with_words(rest | {"examples": len(outcome.examples)})
    path = _examples_file(folder, outcome.task, outcome.shots).with_suffix(".json")
    write_atomic(path, json.dumps(rest, indent=2).encode() + b"\n")


def finished(folder: Path) -> dict[tuple[str, int], TaskOutcome]:
    """{(task, number of shots): outcome} in an output folder. Raises DataError for broken files."""
    found = [_read_json(path) for path in sorted((folder / "examples").glob("*shot.json"))]
    return {(one["task"], one["shots"]): read_outcome(folder, one["task"], one["shots"]) for one in found}


def read_outcome(folder: Path, task: str, shots: int) -> TaskOutcome:
    """A task with its examples, written by `save_outcome`. Raises DataError for missing or broken files."""
    path = _examples_file(folder, task, shots)
    rest = _read_json(path.with_suffix(".json"))
    examples = list(read_examples(folder, task, shots))
    if len(examples) != rest["examples"]:
        raise DataError(f"{path} has {len(examples)} examples, not {rest['examples']}: evaluate into another folder")
    metrics = {name: float(value) for name, value in rest["metrics"].items()}
    return TaskOutcome(**rest | {"examples": examples, "metrics": metrics})


def read_examples(folder: Path, task: str, shots: int) -> Iterator[ExampleOutcome]:
    """A task's examples, one by one. Raises DataError that names file and line."""
    path = _examples_file(folder, task, shots)
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    values = json.loads(line)
                    values["choices"] = tuple(values["choices"])
                    values["scores"] = tuple(float(score) for score in values["scores"])
                    values["metrics"] = {name: float(value) for name, value in values["metrics"].items()}
                    yield ExampleOutcome(**values)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise DataError(f"{path}:{number}: not an example of an evaluation: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def write_results(
    folder: Path,
    request: dict[str, Any],
    outcomes: Sequence[TaskOutcome],
    *,
    layout: dict[str, Any] | None = None,
    work: dict[str, Any] | None = None,
    corpus: Mapping[str, CorpusMetric] | None = None,
    seed: int = 0,
) -> Result:
    """Write result.json and the outcomes' examples.

    request: everything that the results depend on, with `protocol`, `seeds` and `checkpoint` (from
    `describe_checkpoint`, or None). layout: ranks by kind of parallelism. work: effort, such as seconds and reused
    tokens. corpus: functions for metrics that are not means of examples, for their intervals; BLEU is built in. seed:
    for the bootstrap. Raises ConfigError when a task and number of shots appear twice, DataError when a file cannot be
    written.
    """
    names = [(outcome.task, outcome.shots) for outcome in outcomes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"task {twice[0][0]} with {twice[0][1]} shots was evaluated twice: name it once")
    for outcome in outcomes:
        save_outcome(folder, outcome)
    tasks = [summarize(outcome, corpus=corpus, seed=seed) for outcome in outcomes]
    about = {
        "kind": KIND,
        "layout": layout,
        "work": work,
        "intervals": {"level": 0.95, "seed": seed, "resamples": RESAMPLES, "resamples_corpus": CORPUS_RESAMPLES},
    }
    content = about | {"results": [asdict(task) for task in tasks]}
    written = write_result(folder, request, content, libraries=LIBRARIES)
    return Result(folder, folder.name, {key: value for key, value in written.items() if key != "results"}, tasks)


def is_result(folder: Path) -> bool:
    """Whether a folder holds the result of an in-context evaluation."""
    try:
        return json.loads((folder / "result.json").read_bytes()).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def read_results(folder: Path, name: str | None = None) -> Result:
    """Read result.json. Raises DataError when it is missing or broken.

    name: the result's name; by default the name of the run whose checkpoint was evaluated, else the folder's.
    """
    path = folder / "result.json"
    content = _read_json(path)
    try:
        if content.get("kind") != KIND:
            raise DataError(f"{path} is not the result of an evaluation in context")
        tasks = [_task_result(values) for values in content.pop("results")]
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} is not the result of an evaluation in context, or is from another version of megagpt: {error}"
        ) from None
    run = (content.get("checkpoint") or {}).get("run")
    return Result(folder, name or run or folder.absolute().name, content, tasks)


def read_several(folders: Sequence[Path]) -> list[Result]:
    """Several results, named by the parts in which their folders differ.

    Raises DataError for a missing or broken result, ConfigError for a folder that is named twice.
    """
    parts = [folder.absolute().parts for folder in folders]
    if len(folders) == 1:
        return [read_results(folders[0])]
    if len(set(parts)) < len(parts):
        raise ConfigError("a folder of results is named twice: name each once")
    shortest = min(map(len, parts))
    start = next(i for i in range(shortest + 1) if len({part[: i + 1] for part in parts}) > 1)
    end = next((i for i in range(shortest) if len({part[-1 - i] for part in parts}) > 1), 0)
    names = ["/".join(part[start : len(part) - end]) for part in parts]
    if "" in names or len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_results(folder, name) for folder, name in zip(folders, names, strict=True)]


def _examples_file(folder: Path, task: str, shots: int) -> Path:
    # Quoted, because a task's name may contain a slash.
    return folder / "examples" / f"{quote(task, safe=' ()[],')}_{shots}shot.jsonl"


def _with_words(value: Any) -> Any:
    """The same value, with strings in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _with_words(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_words(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None


def _task_result(values: dict[str, Any]) -> TaskResult:
    clean = values["clean"]
    result = TaskResult(**values | {"metrics": _measures(values["metrics"])})
    return replace(result, clean=clean and Subset(clean["examples"], _measures(clean["metrics"])))


def _measures(values: dict[str, Any]) -> dict[str, Measure]:
    return {
        name: Measure(one["value"], one["interval"] and Interval(**one["interval"])) for name, one in values.items()
    }
