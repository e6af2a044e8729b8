"""Evaluate a model: on programming problems (pass@k, in a sandbox) or on edits by instruction.

python tools/evaluate.py task=humaneval data=HumanEval.jsonl.gz checkpoint=runs/code output=runs/code/humaneval
python tools/evaluate.py task=humaneval data=HumanEval.jsonl.gz completions=samples.jsonl output=judged
python tools/evaluate.py task=edits data=edits.jsonl checkpoint=runs/edit output=runs/edit/edits

Arguments are key=value; --help lists the keys. Interrupted, the same command goes on where it stopped.
"""

import re
import sys
from dataclasses import MISSING, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megagpt import checkpoint, env
from megagpt.config.nearest import nearest
from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError
from megagpt.evaluate.code_tasks import TASKS
from megagpt.evaluate.coding import CodeEvaluation, evaluate_code
from megagpt.evaluate.edits import EditEvaluation, evaluate_edits
from megagpt.log import run_tool
from megagpt.model.generation import Generator
from megagpt.parallel import launch
from megagpt.stages.weights import load_model


def main() -> None:
    """Run the command line and show the figures."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text())
        sys.exit(0)
    settings = parse(sys.argv[1:])
    if env.world_size() > 1:
        raise ConfigError(f"the evaluation runs on one rank, not {env.world_size()}: start it without torchrun")
    try:
        generator = None
        if settings.checkpoint is not None:
            config, engine, tokenizer = load_model(settings.checkpoint, ParallelConfig())
            generator = Generator(engine.modules, config, tokenizer, settings.batch_size)
            settings = replace(settings, checkpoint=checkpoint.find(settings.checkpoint))
        if isinstance(settings, EditEvaluation):
            show_edits(evaluate_edits(settings, generator))
        else:
            show_code(evaluate_code(settings, generator))
    finally:
        launch.shutdown()
    print(settings.output / "result.json")


def show_code(result: dict[str, Any]) -> None:
    """Print pass@k."""
    counts = result["counts"]
    print(f"{counts['samples_passed']} of {counts['samples']} samples passed, {counts['problems']} problems")
    for k, found in result["pass_at_k"].items():
        low_high = found["interval_95"]
        shown = f" (95% interval {low_high[0]:.2%} to {low_high[1]:.2%})" if low_high else ""
        print(f"pass@{k} {found['value']:.2%}{shown}")
    if result["sandbox"] == "none":
        print("programs ran unprotected: sandbox=none")


def show_edits(result: dict[str, Any]) -> None:
    """Print a line for all edits and for each kind."""
    for kind, figures in result["figures"].items():
        line = f"{kind:<16} {figures['edits']:>6} edits  exact match {figures['exact_match']:.1%}"
        line += f"  similarity {figures['similarity']:.3f} (unchanged {figures['unchanged_similarity']:.3f})"
        print(line + (f"  tests passed {figures['tests_passed']:.1%}" if "tests_passed" in figures else ""))


def parse(arguments: list[str]) -> CodeEvaluation | EditEvaluation:
    """The settings in key=value arguments. Raises ConfigError for an unknown key or a wrong value."""
    tasks = [text.partition("=")[2] for text in arguments if text.startswith("task=")]
    if tasks and tasks[0] not in (*TASKS, "edits"):
        raise ConfigError(f"task is {tasks[0]!r}; it must be one of {', '.join((*TASKS, 'edits'))}")
    kind = EditEvaluation if tasks == ["edits"] else CodeEvaluation
    names = [field.name for field in fields(kind)]
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} is no key=value; the keys are {', '.join(names)}")
        if key not in names:
            like = nearest(key, names)
            raise ConfigError(f"unknown key {key!r}" + (f"; did you mean {like}?" if like else f": {', '.join(names)}"))
        if key in given:
            raise ConfigError(f"{key} is given twice")
        given[key] = re.findall(r"[^\s,\[\]]+", value) if key == "k" else value
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in given]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given, as key=value")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None


def help_text() -> str:
    """The docstring, and each key with its default."""
    lines = [__doc__.strip()]
    for title, kind in (("programming problems", CodeEvaluation), ("edits", EditEvaluation)):
        lines += ["", f"keys for {title}:"]
        for field in fields(kind):
            default = "" if field.default in (MISSING, None) else f" (default {field.default})"
            lines.append(f"  {field.name}{default}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_tool(main)
