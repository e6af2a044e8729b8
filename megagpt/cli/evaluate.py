"""`megagpt evaluate`."""

from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

import click

from megagpt import env
from megagpt.cli.group import Command
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.evaluate.settings import CodeEvaluation, EditEvaluation, EmbeddingEvaluation, Evaluation


class EvaluateCommand(Command):
    """Its help ends with the keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every key with its default and docstring, once, under the widest group of tasks that have it."""
        from megagpt.evaluate import settings

        for title, kind in (
            ("all tasks", settings.Evaluation),
            ("generated text", settings.GenerationEvaluation),
            ("programming problems", settings.CodeEvaluation),
            ("edits", settings.EditEvaluation),
            ("embeddings", settings.EmbeddingEvaluation),
            *((f"task={task}", kind) for task, kind in settings.EMBEDDING_TASKS.items()),
        ):
            with formatter.section(f"Keys for {title}"):
                formatter.write_dl(_keys(kind))


def _keys(kind: type) -> list[tuple[str, str]]:
    """The keys that a class of settings itself declares, with their defaults and docstrings."""
    from megagpt.config.help import docstrings

    texts = docstrings(kind)
    return [
        (field.name, " ".join(texts[field.name].split()) + _default(field.default))
        for field in fields(kind)
        if field.name in texts
    ]


def _default(value: Any) -> str:
    return "" if value in (MISSING, None) else f" [default: {value}]"


@click.command(
    "evaluate",
    cls=EvaluateCommand,
    goes_on=True,
    short_help="Evaluate a model on programs (pass@k), edits, or by its embeddings.",
)
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE...")
def command(overrides: tuple[str, ...]) -> None:
    """Evaluate a model: on programming problems (pass@k, in a sandbox), on edits by instruction, or by its embeddings
    (similarity, search, linear probes).

    \b
    Examples
      megagpt evaluate task=humaneval data=HumanEval.jsonl.gz checkpoint=runs/code output=runs/code/humaneval
      megagpt evaluate task=humaneval data=HumanEval.jsonl.gz completions=samples.jsonl output=results
      megagpt evaluate task=edits data=edits.jsonl checkpoint=runs/edit output=runs/edit/edits
      megagpt evaluate task=sts data=sts-test.csv checkpoint=runs/embed output=runs/embed/sts
      megagpt evaluate task=retrieval data=scifact checkpoint=runs/embed output=runs/embed/scifact
      megagpt evaluate task=code_search data=pairs.test.jsonl checkpoint=runs/embed output=runs/embed/code
      megagpt evaluate task=sts data=sts-test.csv sentence_transformer=all-MiniLM-L6-v2 output=peer

    Interrupted, the same command goes on where it stopped.
    """
    settings = parse(list(overrides))
    if env.world_size() > 1:
        raise ConfigError(f"the evaluation runs on one rank, not {env.world_size()}: start it without torchrun")
    from megagpt import checkpoint
    from megagpt.evaluate.settings import EmbeddingEvaluation
    from megagpt.parallel import launch

    try:
        if settings.checkpoint is not None:
            settings = replace(settings, checkpoint=checkpoint.find(settings.checkpoint))
        if isinstance(settings, EmbeddingEvaluation):
            _evaluate_embeddings(settings)
        else:
            _evaluate_text(settings)
    finally:
        launch.shutdown()
    click.echo(settings.output / "result.json")


def _evaluate_text(settings: "CodeEvaluation | EditEvaluation") -> None:
    from megagpt.config.schema import ParallelConfig
    from megagpt.evaluate.coding import evaluate_code
    from megagpt.evaluate.edits import evaluate_edits
    from megagpt.evaluate.settings import EditEvaluation
    from megagpt.model.generation import Generator
    from megagpt.stages.weights import load_model

    generator = None
    if settings.checkpoint is not None:
        config, engine, tokenizer = load_model(settings.checkpoint, ParallelConfig())
        generator = Generator(engine.modules, config, tokenizer, settings.batch_size)
    if isinstance(settings, EditEvaluation):
        show_edits(evaluate_edits(settings, generator))
    else:
        show_code(evaluate_code(settings, generator))


def _evaluate_embeddings(settings: "EmbeddingEvaluation") -> None:
    from megagpt.evaluate.embedding_tasks import evaluate_embeddings

    if settings.checkpoint is None:
        from megagpt.evaluate.text_embedder import SentenceTransformerEmbedder

        embedder = SentenceTransformerEmbedder(settings.sentence_transformer, settings.batch_size)
    else:
        from megagpt.config.schema import ParallelConfig
        from megagpt.stages.embedding import load_embedder

        embedder = load_embedder(settings.checkpoint, ParallelConfig())
    show_embeddings(evaluate_embeddings(settings, embedder))


def parse(overrides: list[str]) -> "Evaluation":
    """The settings in key=value arguments. Raises ConfigError for an unknown key or a wrong value."""
    from megagpt.config.overrides import build
    from megagpt.evaluate.code_tasks import TASKS
    from megagpt.evaluate.settings import EMBEDDING_TASKS, CodeEvaluation, EditEvaluation

    kinds = dict.fromkeys(TASKS, CodeEvaluation) | {"edits": EditEvaluation} | EMBEDDING_TASKS
    tasks = [text.partition("=")[2] for text in overrides if text.startswith("task=")]
    if tasks and tasks[0] not in kinds:
        raise ConfigError(f"task is {tasks[0]!r}; it must be one of {', '.join(kinds)}")
    return build(kinds[tasks[0]] if tasks else CodeEvaluation, overrides)


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


def show_embeddings(result: dict[str, Any]) -> None:
    """Print a line of metrics for the model, and one for each of what it is compared with."""
    sizes = {name: count for name, count in result["data"].items() if name != "files"}
    click.echo(", ".join(f"{count} {name}" for name, count in sizes.items()))
    for name, metrics in result["metrics"].items():
        shown = (f"{metric} {'undefined' if v is None else format(v, '.4f')}" for metric, v in metrics.items())
        click.echo(f"{name:<10}{'  '.join(shown)}")
    if "candidates" in result:
        click.echo(f"each query searched {result['candidates']:,} candidates")
