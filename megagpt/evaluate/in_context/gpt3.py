"""GPT-3's protocol of in-context evaluation, for any lm-eval model (arXiv 2005.14165, section 2.4, appendices G, H).

docs/gpt3_protocol.md states the rules.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from megagpt.errors import ConfigError, DataError, TrainingDiverged
from megagpt.evaluate.in_context import answers
from megagpt.evaluate.in_context.gpt3_prompts import Pair, Prompt, Prompts, TooLong
from megagpt.evaluate.in_context.gpt3_task import Gpt3Task
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask

BEAM = {"num_beams": 4, "length_penalty": 0.6, "length_penalty_form": "gnmt", "do_sample": False}
"""Beam search for generated answers. GPT-3 used T5's settings (arXiv 1910.10683); scores are divided by
((5 + length) / 6) ** 0.6."""

NAMES = {"accuracy": "acc", "cmrc_f1": "f1", "final_number": "exact_match"}
"""{metric of a task: name in outcomes}, where the two differ; the names in outcomes are lm-eval's."""

JUDGES = {
    "f1": answers.f1,
    "cmrc_f1": answers.cmrc_f1,
    "exact_match": answers.exact_match,
    "final_number": answers.final_number,
}
"""Functions that judge a generated answer, by metric; corpus BLEU cannot be computed from single answers."""


@dataclass(frozen=True)
class _Answered:
    """An example's outcome, with figures for the notes."""

    outcome: ExampleOutcome
    targets: tuple[str, ...]
    tie: bool
    merged: int
    """Number of options whose tokens merge with the context."""


def evaluate_gpt3(
    lm: "TemplateLM",
    task: "ConfigurableTask",
    shots: int | None,
    *,
    seed: int,
    limit: int | None = None,
    clean: Mapping[str, bool] | None = None,
) -> TaskOutcome:
    """Evaluate a task with up to `shots` demonstrations (None: the published number) before each question.

    seed: for drawing demonstrations. limit: number of examples, from the beginning of the data; None for all. clean:
    {example id: whether it is in the clean subset} from `clean.CleanSubsets`. Questions that do not fit the context
    even without demonstrations are left out; the notes give their number. Raises ConfigError for a task that the
    protocol does not support, DataError for invalid examples and when no question fits, TrainingDiverged for
    log-probabilities that are NaN.
    """
    asked = Gpt3Task(task)
    shots = asked.settings.shots if shots is None else shots
    if shots is None:
        raise ConfigError(f"no number of shots is published for task {asked.name}: give shots=[...]")
    examples = asked.examples(limit)
    if not examples:
        raise DataError(f"task {asked.name} has no examples")
    asked.check_shots(shots)
    made = Prompts(lm, asked, shots, seed)
    check_fits(lm, asked, limit)
    prompts: list[Prompt] = []
    long = 0
    for example in examples:
        try:
            prompts.append(made.prompt(*example))
        except TooLong:
            long += 1
    answered = _answer(lm, asked, prompts, made.room, clean or {})
    return _outcome(asked, shots, answered, long, lm.max_length)


def check_fits(lm: "TemplateLM", asked: Gpt3Task, limit: int | None) -> None:
    """Raise DataError when no question of a task fits the context of `lm`; fast if the first question fits."""
    made, long = Prompts(lm, asked, 0, seed=0), None
    for example in asked.examples(limit):
        try:
            made.prompt(*example)
            return
        except TooLong as error:
            long = long or error
    if long:
        raise DataError(f"{long}; no question of the task fits: leave the task out, or use a longer context")


def _answer(
    lm: "TemplateLM", task: Gpt3Task, prompts: Sequence[Prompt], room: int, clean: Mapping[str, bool]
) -> list[_Answered]:
    """Ask the model. It gets all requests of a task at once, so that it can sort them and reuse common prefixes."""
    if task.written:
        return _write(lm, task, prompts, room, clean)
    pairs = {(pair.before, pair.after): pair for prompt in prompts for pair in prompt.pairs + prompt.bare}
    requests = [((pair.context, pair.continuation), list(pair.before), list(pair.after)) for pair in pairs.values()]
    results = lm._loglikelihood_tokens(requests) if requests else []
    found = dict(zip(pairs, results, strict=True))
    return [_compare(task, prompt, found, clean) for prompt in prompts]


def _compare(
    task: Gpt3Task, prompt: Prompt, found: Mapping[tuple, tuple[float, bool]], clean: Mapping[str, bool]
) -> _Answered:
    """Score the options of one question, and choose the best."""

    def logprob(pair: Pair) -> float:
        value = float(found[pair.before, pair.after][0])
        if math.isnan(value):
            raise TrainingDiverged(
                f"task {task.name}, question {prompt.id}: the log-probability of {pair.continuation!r} is NaN: "
                "the weights or the activations are not finite; evaluate an earlier checkpoint"
            )
        return value

    question, logprobs = prompt.question, [logprob(pair) for pair in prompt.pairs]
    if task.settings.score == "answer_context":
        scores = [
            -math.inf if value == -math.inf else value - logprob(bare)
            for value, bare in zip(logprobs, prompt.bare, strict=True)
        ]
    elif task.settings.score == "tokens" and task.has_choices:
        scores = [value / len(pair.after) for value, pair in zip(logprobs, prompt.pairs, strict=True)]
    else:
        scores = logprobs
    if task.has_choices:
        best = answers.best(scores)
        answer, accuracy = question.choices[best[0]], len(question.right.intersection(best)) / len(best)
    else:
        best, greedy = [0], bool(found[prompt.pairs[0].before, prompt.pairs[0].after][1])
        answer, accuracy = question.targets[0] if greedy else "", float(greedy)
    metrics = {NAMES["accuracy"]: accuracy}
    if task.settings.perplexity:
        metrics["perplexity"] = logprobs[min(question.right)]
    outcome = _example(prompt, tuple(scores), answer, metrics, clean)
    return _Answered(outcome, question.targets, len(best) > 1, sum(pair.merged for pair in prompt.pairs))


def _write(
    lm: "TemplateLM", task: Gpt3Task, prompts: Sequence[Prompt], room: int, clean: Mapping[str, bool]
) -> list[_Answered]:
    """Generate the answers by beam search, and judge them."""
    from lm_eval.api.instance import Instance

    until = [
        stop for stop in task.settings.until or (task.task.config.generation_kwargs or {}).get("until") or () if stop
    ] or [task.settings.separator]
    if until == [""]:
        raise ConfigError(f"task {task.name}: metadata: gpt3: until: say what ends an answer; the separator is empty")
    options = {**BEAM, "until": until, "max_gen_toks": room}
    requests = [
        Instance("generate_until", {}, (prompt.text, dict(options)), 0, (task.name, number, 1))
        for number, prompt in enumerate(prompts)
    ]
    texts = lm.generate_until(requests) if requests else []
    tokenizer = task.settings.bleu_tokenizer
    answered = []
    for prompt, text in zip(prompts, texts, strict=True):
        answer, targets = text.strip(), prompt.question.targets
        if task.metric == "bleu":
            value = answers.sentence_bleu(answer, targets, tokenizer or answers.bleu_tokenizer(targets))
        else:
            value = JUDGES[task.metric](answer, targets)
        outcome = _example(prompt, (), answer, {NAMES.get(task.metric, task.metric): value}, clean)
        answered.append(_Answered(outcome, targets, False, 0))
    return answered


def _example(
    prompt: Prompt, scores: tuple[float, ...], answer: str, metrics: dict[str, float], clean: Mapping[str, bool]
) -> ExampleOutcome:
    question, target = prompt.question, " | ".join(prompt.question.targets)
    return ExampleOutcome(
        prompt.id, prompt.text, prompt.shots, question.choices, scores, answer, target, metrics, clean.get(prompt.id)
    )


def _outcome(task: Gpt3Task, shots: int, answered: Sequence[_Answered], long: int, context: int) -> TaskOutcome:
    metrics = _metrics(task, answered)
    aggregate = {"bleu": "corpus", "perplexity": "exp(-mean)"}
    if cleaned := [one for one in answered if one.outcome.clean]:
        metrics |= {f"clean_{name}": value for name, value in _metrics(task, cleaned).items()}
        aggregate |= {f"clean_{name}": how for name, how in aggregate.items()}
    metadata = task.task.config.metadata or {}
    chance = metadata.get("chance") if task.settings.chance is None else task.settings.chance
    if chance is None and task.has_choices:
        chance = fmean(len(one.targets) / len(one.outcome.choices) for one in answered)
    return TaskOutcome(
        task.name,
        shots,
        metrics,
        NAMES.get(task.metric, task.metric),
        True,
        chance,
        [one.outcome for one in answered],
        {name: how for name, how in aggregate.items() if name in metrics},
        str(metadata.get("version", 1)),
        dict(getattr(task.task.dataset, "source", {})),  # megagpt's readers record their files' hashes
        [*getattr(task.task.dataset, "notes", []), *_notes(task, shots, answered, long, context)],
    )


def _metrics(task: Gpt3Task, answered: Sequence[_Answered]) -> dict[str, float]:
    """Metrics over all examples."""
    metrics = {}
    for name in answered[0].outcome.metrics:
        mean = fmean(one.outcome.metrics[name] for one in answered)
        if name == "perplexity":
            metrics[name] = math.exp(-mean) if mean > -700 else math.inf
        elif name == "bleu":
            metrics[name] = answers.corpus_bleu(
                [one.outcome.answer for one in answered], [one.targets for one in answered], _tokenizer(task, answered)
            )
        else:
            metrics[name] = mean
    return metrics


def _tokenizer(task: Gpt3Task, answered: Sequence[_Answered]) -> str:
    return task.settings.bleu_tokenizer or answers.bleu_tokenizer([text for one in answered for text in one.targets])


def _notes(task: Gpt3Task, shots: int, answered: Sequence[_Answered], long: int, context: int) -> list[str]:
    """Sentences about deviations in how the examples were asked."""
    count, notes = len(answered), []
    if long:
        notes.append(
            f"{long} of {count + long} questions are left out: they do not fit the context of {context} tokens"
        )
    fewer = [one.outcome.shots for one in answered if one.outcome.shots < shots]
    if fewer:
        range_ = f"{min(fewer)}" if min(fewer) == max(fewer) else f"{min(fewer)} to {max(fewer)}"
        reason = f"no more fit the context of {context} tokens"
        if task.settings.demonstrations:
            reason += ", or a question has no more demonstrations of its own"
        elif len(task.pool) <= shots:
            reason += f", and there are only {len(task.pool)} examples to draw from"
        notes.append(f"{len(fewer)} of {count} prompts have {range_} shots instead of {shots}: {reason}")
    if ties := sum(one.tie for one in answered):
        notes.append(
            f"{ties} of {count} questions have choices that tie for the best score: tied choices share the point"
        )
    if merged := sum(one.merged > 0 for one in answered):
        notes.append(
            f"{merged} of {count} questions have answers whose first token would merge with the prompt: prompt and "
            "answer are encoded separately"
        )
    if task.own_judge and not task.settings.metric:
        notes.append(f"the accuracy compares the choices; the task's own {task.own_judge} is not used")
    if task.metric == "bleu":
        notes.append(f"BLEU by sacrebleu, tokenizer {_tokenizer(task, answered)}")
    return notes
