"""In-context evaluation by EleutherAI's lm-evaluation-harness (lm-eval) and its protocol."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome, example_ids

SEED = 1234
"""lm-eval's default seed for drawing demonstrations."""
AGGREGATES = {"mean": "mean", "nanmean": "mean", "perplexity": "exp(-mean)"}
"""{lm-eval's aggregation: the name in `TaskOutcome.aggregate`}; all others are "corpus"."""


def evaluate_with_harness(
    lm: LM, task: ConfigurableTask, shots: int, *, seed: int = SEED, limit: int | None = None
) -> TaskOutcome:
    """Run a task with `shots` demonstrations, drawn by `seed`.

    limit: number of examples, from the beginning of the data; None for all. Prompts, draws and metrics are lm-eval's;
    of several equally likely choices it takes the first. Raises ConfigError like `check_shots`.
    """
    check_shots(task, shots)
    own = task.config.num_fewshot
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)
    cut = getattr(lm, "cut_requests", 0)
    try:
        with _quiet():
            found = evaluator.evaluate(
                lm,
                {"tasks": {task.task_name: task}, "groups": {}},
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
    finally:
        task.set_config("num_fewshot", own)
    outcome = _outcome(task, shots, found)
    if cut := getattr(lm, "cut_requests", 0) - cut:
        requests = sum(len(sample["arguments"]) for sample in found["samples"][task.task_name])
        outcome.notes.append(f"{cut} of {requests} requests do not fit the context: they lose their beginnings")
    return outcome


def check_shots(task: ConfigurableTask, shots: int) -> None:
    """Raise ConfigError for a task that is defined without demonstrations or has too few examples to draw from."""
    if not shots:
        return
    if task.config.num_fewshot == 0:
        raise ConfigError(f"task {task.task_name} is defined without demonstrations (num_fewshot: 0): use shots=[0]")
    if not task.has_training_docs() and not task.has_validation_docs() and task.config.fewshot_split is None:
        raise ConfigError(
            f"task {task.task_name} has no examples to draw {shots} demonstrations from (fewshot_split): use shots=[0]"
        )
    available = len(list(task.fewshot_docs()))
    same = task.config.fewshot_split in (None, task.config.test_split)  # the question itself is left out
    if shots > available - same:
        raise ConfigError(f"task {task.task_name} has {available} examples to draw from, too few for shots=[{shots}]")


def _outcome(task: ConfigurableTask, shots: int, found: dict[str, Any]) -> TaskOutcome:
    name, metadata = task.task_name, task.config.metadata or {}
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    kinds = {metric: AGGREGATES.get(function.__name__, "corpus") for metric, function in task.aggregation().items()}
    first = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == first]  # other filters score the same answers again
    values = {
        key.partition(",")[0]: value for key, value in found["results"][name].items() if key.endswith(f",{first}")
    }
    metrics = {metric: float(values[metric]) for metric in kinds if isinstance(values.get(metric), int | float)}
    main = metadata.get("main_metric") or next(iter(kinds))
    notes = []
    if main not in metrics:  # for example a metric of examples that this part of the data does not have
        notes.append(f"{main} is not defined: no example has it")
        metrics[main] = math.nan
    names = example_ids(list(task.eval_docs))
    examples = [_example(task, sample, shots, names[sample["doc_id"]]) for sample in samples]
    return TaskOutcome(
        task=name,
        shots=shots,
        metrics=metrics,
        main_metric=main,
        higher_is_better=bool(task.higher_is_better().get(main, True)),
        chance=metadata.get("chance"),
        examples=examples,
        aggregate={metric: kind for metric, kind in kinds.items() if kind != "mean"},
        version=str(task.VERSION),
        notes=[*notes, *_notes(examples)],
    )


def _example(task: ConfigurableTask, sample: dict[str, Any], shots: int, name: str) -> ExampleOutcome:
    arguments, responses = sample["arguments"], sample["filtered_resps"]
    kind = task.OUTPUT_TYPE
    target, choices, scores, answer = sample["target"], (), (), ""
    prompt = arguments[0][0]
    if kind == "multiple_choice":
        choices = tuple(text for _, text in arguments[: _number_of_choices(task, sample)])
        scores = tuple(float(response[0]) for response in responses[: len(choices)])
        answer = choices[max(range(len(choices)), key=scores.__getitem__)]
        if isinstance(target, int) and 0 <= target < len(choices):
            target = choices[target]
    elif kind == "loglikelihood":
        scores, target = (float(responses[0][0]),), arguments[0][1]
        answer = target if responses[0][1] else ""
    elif kind == "loglikelihood_rolling":
        scores, target, prompt = (float(responses[0]),), prompt, ""
    else:
        answer = str(responses[0])
    return ExampleOutcome(
        id=name,
        prompt=prompt,
        shots=shots,
        choices=choices,
        scores=scores,
        answer=answer,
        target=" | ".join(map(str, target)) if isinstance(target, list) else str(target),
        metrics={name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], int | float)},
    )


def _number_of_choices(task: ConfigurableTask, sample: dict[str, Any]) -> int:
    """Number of choices, without the additional requests of acc_mutual_info."""
    requests = len(sample["arguments"])
    return requests // 2 if "acc_mutual_info" in task.aggregation() else requests


def _notes(examples: Sequence[ExampleOutcome]) -> list[str]:
    ties = sum(len(e.scores) > 1 and sorted(e.scores)[-1] == sorted(e.scores)[-2] for e in examples)
    notes = [f"{ties} of {len(examples)} questions have several equally likely choices: lm-eval takes the first"] * (
        ties > 0
    )
    unlikely = sum(any(math.isinf(score) for score in e.scores) for e in examples)
    return notes + [f"{unlikely} of {len(examples)} examples have an answer of probability 0"] * (unlikely > 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log, which repeats what the results contain."""
    logger = logging.getLogger("lm_eval")
    before, logger.level = logger.level, logging.ERROR
    try:
        yield
    finally:
        logger.level = before
