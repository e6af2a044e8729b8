"""`megagpt evaluate`."""

from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

import click

from megagpt import env
from megagpt.cli.group import Command
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.evaluate.settings import CodeEvaluation, EditEvaluation


class EvaluateCommand(Command):
    """Its help ends with the keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every key with its default and docstring."""
        from megagpt.config.help import docstrings
        from megagpt.evaluate.settings import CodeEvaluation, EditEvaluation, Evaluation

        common = docstrings(Evaluation)
        for title, kind in (("programming problems", CodeEvaluation), ("edits", EditEvaluation)):
            texts = common | docstrings(kind)
            with formatter.section(f"Keys for {title}"):
                formatter.write_dl(
                    [
                        (field.name, " ".join(texts[field.name].split()) + _default(field.default))
                        for field in fields(kind)
                    ]
                )


def _default(value: Any) -> str:
    return "" if value in (MISSING, None) else f" [default: {value}]"


@click.command(
    "evaluate", cls=EvaluateCommand, goes_on=True, short_help="Evaluate a model on programs (pass@k) or edits."
)
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE...")
def command(overrides: tuple[str, ...]) -> None:
    """Evaluate a model: on programming problems (pass@k, in a sandbox) or on edits by instruction.

    \b
    Examples
      megagpt evaluate task=humaneval data=HumanEval.jsonl.gz checkpoint=runs/code output=runs/code/humaneval
      megagpt evaluate task=humaneval data=HumanEval.jsonl.gz completions=samples.jsonl output=results
      megagpt evaluate task=edits data=edits.jsonl checkpoint=runs/edit output=runs/edit/edits

    Interrupted, the same command goes on where it stopped.
    """
    settings = parse(list(overrides))
    if env.world_size() > 1:
        raise ConfigError(f"the evaluation runs on one rank, not {env.world_size()}: start it without torchrun")
    from megagpt import checkpoint
    from megagpt.config.schema import ParallelConfig
    from megagpt.evaluate.coding import evaluate_code
    from megagpt.evaluate.edits import evaluate_edits
    from megagpt.evaluate.settings import EditEvaluation
    from megagpt.model.generation import Generator
    from megagpt.parallel import launch
    from megagpt.stages.weights import load_model

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
    click.echo(settings.output / "result.json")


def parse(overrides: list[str]) -> "CodeEvaluation | EditEvaluation":
    """The settings in key=value arguments. Raises ConfigError for an unknown key or a wrong value."""
    from megagpt.config.overrides import build
    from megagpt.evaluate.code_tasks import TASKS
    from megagpt.evaluate.settings import CodeEvaluation, EditEvaluation

    tasks = [text.partition("=")[2] for text in overrides if text.startswith("task=")]
    if tasks and tasks[0] not in (*TASKS, "edits"):
        raise ConfigError(f"task is {tasks[0]!r}; it must be one of {', '.join((*TASKS, 'edits'))}")
    return build(EditEvaluation if tasks == ["edits"] else CodeEvaluation, overrides)


def show_code(result: dict[str, Any]) -> None:
    """Print pass@k."""
    counts = result["counts"]
    click.echo(f"{counts['samples_passed']} of {counts['samples']} samples passed, {counts['problems']} problems")
    for k, found in result["pass_at_k"].items():
        low_high = found["interval_95"]
        shown = f" (95% interval {low_high[0]:.2%} to {low_high[1]:.2%})" if low_high else ""
        click.echo(f"pass@{k} {found['value']:.2%}{shown}")
    if result["sandbox"] == "none":
        click.echo("programs ran unprotected: sandbox=none")


def show_edits(result: dict[str, Any]) -> None:
    """Print a line for all edits and for each kind."""
    for kind, metrics in result["metrics"].items():
        line = f"{kind:<16} {metrics['edits']:>6} edits  exact match {metrics['exact_match']:.1%}"
        line += f"  similarity {metrics['similarity']:.3f} (unchanged {metrics['unchanged_similarity']:.3f})"
        click.echo(line + (f"  tests passed {metrics['tests_passed']:.1%}" if "tests_passed" in metrics else ""))
