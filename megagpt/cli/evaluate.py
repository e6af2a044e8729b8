"""`megagpt evaluate`."""

from dataclasses import MISSING, fields, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

from megagpt import env
from megagpt.cli.group import RankedCommand
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.evaluate.settings import (
        CodeEvaluation,
        EditEvaluation,
        EmbeddingEvaluation,
        Evaluation,
        InstructionEvaluation,
        TasksEvaluation,
    )


SHOWN = 10
"""Number of omitted problems to name."""


class EvaluateCommand(RankedCommand):
    """A command whose help ends with the keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every key with its default and docstring, once, under the largest group of tasks that has it."""
        from megagpt.evaluate import settings

        for title, kind in (
            ("tasks in context (tasks=...)", settings.TasksEvaluation),
            ("all others (task=...)", settings.Evaluation),
            ("generated text", settings.GenerationEvaluation),
            ("programming problems", settings.CodeEvaluation),
            ("edits", settings.EditEvaluation),
            ("instructions", settings.InstructionEvaluation),
            ("embeddings", settings.EmbeddingEvaluation),
            *((f"task={task}", kind) for task, kind in settings.EMBEDDING_TASKS.items()),
        ):
            with formatter.section(f"Keys for {title}"):
                formatter.write_dl(_keys(kind))


def _keys(kind: type) -> list[tuple[str, str]]:
    """(key, its docstring and default) for the keys that the class itself declares."""
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
    short_help="Evaluate a model on tasks in context, programs (pass@k), edits, instructions, or by its embeddings.",
)
@click.argument("overrides", nargs=-1, metavar="KEY=VALUE...")
def command(overrides: tuple[str, ...]) -> None:
    """Evaluate a model: on tasks in context (zero-, one- and few-shot), on programming problems (pass@k, in a sandbox),
    on edits by instruction, on instructions whose answers a program checks, or by its embeddings (similarity, search,
    linear probes).

    \b
    Examples
      megagpt evaluate tasks=[hellaswag,lambada] shots=[0,1,8] data=sets checkpoint=runs/demo output=runs/tasks
      megagpt evaluate tasks=gpt3 protocol=gpt3 data=sets checkpoint=runs/demo output=runs/gpt3
      megagpt evaluate task=humaneval data=HumanEval.jsonl.gz checkpoint=runs/code output=runs/code/humaneval
      megagpt evaluate task=humaneval data=HumanEval.jsonl.gz completions=samples.jsonl output=results
      megagpt evaluate task=edits data=edits.jsonl checkpoint=runs/edit output=runs/edit/edits
      megagpt evaluate task=instructions data=prompts.jsonl checkpoint=runs/ppo output=runs/ppo/instructions
      megagpt evaluate task=sts data=sts-test.csv checkpoint=runs/embed output=runs/embed/sts
      megagpt evaluate task=retrieval data=scifact checkpoint=runs/embed output=runs/embed/scifact
      megagpt evaluate task=code_search data=pairs.test.jsonl checkpoint=runs/embed output=runs/embed/code
      megagpt evaluate task=sts data=sts-test.csv sentence_transformer=all-MiniLM-L6-v2 output=peer

    Tasks in context may run on several ranks (--nproc-per-node N); the others run on one. After an interruption, the
    same command goes on where it stopped.
    """
    settings = parse(list(overrides))
    from megagpt.evaluate.settings import TasksEvaluation

    if isinstance(settings, TasksEvaluation):
        from megagpt.cli.in_context import evaluate_tasks

        evaluate_tasks(settings)
        return
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


def _evaluate_text(settings: "CodeEvaluation | EditEvaluation | InstructionEvaluation") -> None:
    from megagpt.config.schema import ParallelConfig
    from megagpt.evaluate.coding import evaluate_code
    from megagpt.evaluate.edits import evaluate_edits
    from megagpt.evaluate.instructions import evaluate_instructions
    from megagpt.evaluate.settings import EditEvaluation, InstructionEvaluation
    from megagpt.model.generation import Generator
    from megagpt.stages.weights import load_model
    from megagpt.train.metrics import read_jsonl

    generator = None
    if settings.checkpoint is not None:
        config, engine, tokenizer = load_model(settings.checkpoint, ParallelConfig())
        generator = Generator(engine.modules, config, tokenizer, settings.batch_size)
    if isinstance(settings, EditEvaluation):
        show_edits(evaluate_edits(settings, generator))
    elif isinstance(settings, InstructionEvaluation):
        result = evaluate_instructions(settings, generator)
        show_instructions(result, read_jsonl(settings.output / "samples.jsonl"), settings.show)
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


def parse(overrides: list[str]) -> "Evaluation | TasksEvaluation":
    """The settings in key=value arguments. Raises ConfigError for an unknown key or a wrong value."""
    from megagpt.config.overrides import build
    from megagpt.evaluate.code_tasks import TASKS
    from megagpt.evaluate.settings import (
        EMBEDDING_TASKS,
        CodeEvaluation,
        EditEvaluation,
        InstructionEvaluation,
        TasksEvaluation,
    )

    if any(text.startswith("tasks=") for text in overrides):
        return build(TasksEvaluation, overrides)
    others = {"edits": EditEvaluation, "instructions": InstructionEvaluation}
    kinds = dict.fromkeys(TASKS, CodeEvaluation) | others | EMBEDDING_TASKS
    tasks = [text.partition("=")[2] for text in overrides if text.startswith("task=")]
    if tasks and tasks[0] not in kinds:
        raise ConfigError(
            f"task is {tasks[0]!r}; it must be one of {', '.join(kinds)}; a task in context is named by tasks=[...]"
        )
    return build(kinds[tasks[0]] if tasks else CodeEvaluation, overrides)


def show_code(result: dict[str, Any]) -> None:
    """Print pass@k."""
    counts = result["counts"]
    click.echo(f"{counts['samples_passed']} of {counts['samples']} samples passed, {counts['problems']} problems")
    if too_long := counts["prompts_too_long"]:
        click.echo(f"{too_long} of the samples failed because the prompt fills the context window")
    show_left_out(result["left_out"], "problems")
    for k, found in result["pass_at_k"].items():
        low_high = found["interval_95"]
        shown = f" (95% interval {low_high[0]:.2%} to {low_high[1]:.2%})" if low_high else ""
        click.echo(f"pass@{k} {found['value']:.2%}{shown}")
    if result["sandbox"] == "none":
        click.echo("programs ran unprotected: sandbox=none")


def show_left_out(left_out: dict[str, Any], kind: str) -> None:
    """Print the number of items that could not be judged, and the first of them with their reasons."""
    if count := left_out[kind]:
        click.echo(f"{count} {kind} left out of all figures, since their own reference solutions fail their tests:")
        for name, reason in list(left_out["reasons"].items())[:SHOWN]:
            click.echo(f"  {name}: {reason}")
        if count > SHOWN:
            click.echo(f"  and {count - SHOWN} more, see result.json")


def show_edits(result: dict[str, Any]) -> None:
    """Print a line for all edits and for each kind."""
    for kind, metrics in result["metrics"].items():
        line = f"{kind:<16} {metrics['edits']:>6} edits  exact match {metrics['exact_match']:.1%}"
        line += f"  similarity {metrics['similarity']:.3f} (unchanged {metrics['unchanged_similarity']:.3f})"
        click.echo(line + (f"  tests passed {metrics['tests_passed']:.1%}" if "tests_passed" in metrics else ""))
    if too_long := result["metrics"]["all"]["prompts_too_long"]:
        click.echo(f"{too_long} of the edits count as wrong because their prompts fill the context window")
    show_left_out(result["left_out"], "edits")


def show_instructions(result: dict[str, Any], answers: list[dict[str, Any]], count: int) -> None:
    """Print the share of right answers, of all and of each kind, and `count` of the answers, the kinds in turn."""
    for kind, metrics in result["metrics"].items():
        click.echo(f"{kind:<16} {metrics['instructions']:>6} instructions  right {metrics['right']:.1%}")
    for answer in in_turn(answers)[:count]:
        asked = answer["prompt"].replace("\n", " / ")
        click.echo(f"{'right' if answer['right'] else 'wrong':<6} {asked}  ->  {answer['answer']}")


def in_turn(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first answer of every kind, then the second of every kind, and so on."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        groups.setdefault(answer["kind"], []).append(answer)
    return [answer for row in zip_longest(*groups.values()) for answer in row if answer is not None]


def show_embeddings(result: dict[str, Any]) -> None:
    """Print a line of metrics for the model, and one for each baseline."""
    sizes = {name: count for name, count in result["data"].items() if name != "files"}
    click.echo(", ".join(f"{count} {name}" for name, count in sizes.items()))
    for name, metrics in result["metrics"].items():
        shown = (f"{metric} {'undefined' if v is None else format(v, '.4f')}" for metric, v in metrics.items())
        click.echo(f"{name:<10}{'  '.join(shown)}")
    if "candidates" in result:
        click.echo(f"each query searched {result['candidates']:,} candidates")
