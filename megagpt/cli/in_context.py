"""The part of `megagpt evaluate` that runs tasks in context, on one rank or many."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megagpt import env
from megagpt.cli.ranks import one_voice, say
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

    from megagpt.evaluate.in_context.outcomes import TaskOutcome
    from megagpt.evaluate.settings import TasksEvaluation


@one_voice()
def evaluate_tasks(settings: "TasksEvaluation") -> None:
    """Run the tasks, print a line for each, and write the results. Finished tasks of an earlier call are kept."""
    from megagpt.checkpoint import current_world
    from megagpt.evaluate.in_context import results
    from megagpt.evaluate.in_context.run import check_tasks, run_tasks
    from megagpt.evaluate.output_folder import claim
    from megagpt.evaluate.vectors import first_rank_does

    check_tasks(settings.tasks, settings.shots, settings.protocol, settings.data)
    began = time.monotonic()
    lm, model = _language_model(settings)
    world = current_world()
    request = _request(settings, model)

    def begin() -> list[tuple[str, int]]:
        settings.output.mkdir(parents=True, exist_ok=True)
        claim(settings.output, request)
        return list(results.finished(settings.output))

    done = {(task, shots) for task, shots in first_rank_does(world, begin)}
    say("".join(f"{task}, {shots} shots: finished earlier\n" for task, shots in sorted(done)))
    for outcome in run_tasks(
        lm,
        tasks=settings.tasks,
        shots=settings.shots,
        protocol=settings.protocol,
        data=settings.data,
        limit=settings.limit,
        seed=settings.seed,
        clean=settings.clean,
        done=done,
    ):
        first_rank_does(world, lambda outcome=outcome: results.save_outcome(settings.output, outcome))
        say(line(outcome))

    def end() -> None:
        outcomes = list(results.finished(settings.output).values())
        layout = {
            "ranks": env.world_size(),
            "tensor_parallel_size": settings.tensor_parallel_size,
            "pipeline_parallel_size": settings.pipeline_parallel_size,
        }
        work: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
        if counts := getattr(lm, "counts", None):
            work |= {"requests": counts.requests, "tokens": counts.asked, "tokens_computed": counts.computed}
        results.write_results(settings.output, request, outcomes, layout=layout, work=work)

    first_rank_does(world, end)
    if env.rank() == 0:
        click.echo(settings.output / "result.json")


MOST_METRICS = 4
"""Number of metrics per task that the terminal shows; result.json has all."""


def line(outcome: "TaskOutcome") -> str:
    """A task's figures for the terminal, its main metric first."""
    names = [outcome.main_metric, *(name for name in outcome.metrics if name != outcome.main_metric)]
    shown = "  ".join(f"{name} {outcome.metrics[name]:.4f}" for name in names[:MOST_METRICS])
    shown += f"  and {len(names) - MOST_METRICS} more" if len(names) > MOST_METRICS else ""
    chance = "" if outcome.chance is None else f"  (chance {outcome.chance:.3f})"
    head = f"{outcome.task:<24} {outcome.shots:>3} shots  {len(outcome.examples):>6} examples  "
    return f"{head}{shown}{chance}\n" + "".join(f"  {note}\n" for note in outcome.notes)


def _language_model(settings: "TasksEvaluation") -> tuple["TemplateLM", dict[str, Any]]:
    """(the model, its description in the request)."""
    if settings.huggingface is not None:
        return _peer(settings)
    from megagpt import checkpoint
    from megagpt.config.schema import ParallelConfig
    from megagpt.evaluate.in_context.language_model import MegaGPTLM
    from megagpt.evaluate.in_context.results import describe_checkpoint
    from megagpt.plan.parameters import total_parameters
    from megagpt.stages.weights import load_model

    parallel = ParallelConfig(
        tensor_parallel_size=settings.tensor_parallel_size,
        pipeline_parallel_size=settings.pipeline_parallel_size,
    )
    folder = checkpoint.find(settings.checkpoint)
    config, engine, tokenizer = load_model(folder, parallel)
    lm = MegaGPTLM(engine.modules, config, tokenizer)
    return lm, {"checkpoint": describe_checkpoint(folder, total_parameters(config.model)), "huggingface": None}


def _peer(settings: "TasksEvaluation") -> tuple["TemplateLM", dict[str, Any]]:
    if env.world_size() > 1:
        raise ConfigError(f"huggingface=... runs on one rank, not {env.world_size()}: start it without ranks")
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(f"huggingface=... needs {error.name}: pip install transformers accelerate") from None
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the bar for loading weights
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm = HFLM(pretrained=settings.huggingface, backend="causal", batch_size=8, device=device)
    parts = sorted(file for file in Path(settings.huggingface).rglob("*") if file.is_file())
    from megagpt.data.files import file_sha256

    return lm, {
        "checkpoint": None,
        "huggingface": {
            "name": settings.huggingface,
            "sha256": {str(part.relative_to(settings.huggingface)): file_sha256(part) for part in parts},
            "parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
        },
    }


def _request(settings: "TasksEvaluation", model: dict[str, Any]) -> dict[str, Any]:
    """Everything that determines the results, except for the data, whose files each task names."""
    return model | {
        "tasks": list(settings.tasks),
        "shots": list(settings.shots),
        "protocol": settings.protocol,
        "data": settings.data and str(settings.data),
        "limit": settings.limit,
        "seeds": {"demonstrations": settings.seed},
        "clean": settings.clean and str(settings.clean),
    }
