"""Evaluates a model on programming problems: generates or reads completions, tests them, and computes pass@k.

First each problem's reference solution is tested. If it fails, the tests cannot judge a model, and the problem is left
out; the log names it. In addition to request.json and result.json the folder holds references.jsonl, completions.jsonl
and samples.jsonl, to which lines are appended during the evaluation.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.data.chat import Message, chat_prompt
from megagpt.data.conversations import records
from megagpt.data.unread import log_unread
from megagpt.errors import DataError
from megagpt.evaluate.code_tasks import Problem, prompt_hash, read_problems
from megagpt.evaluate.output_folder import append_jsonl, claim, read_whole_jsonl, request_of, write_result
from megagpt.evaluate.pass_at_k import estimate
from megagpt.evaluate.sandbox import SandboxRunner, Verdict
from megagpt.evaluate.settings import CodeEvaluation
from megagpt.log import progress
from megagpt.model.generation import GenerationConfig, Generator

log = logging.getLogger(__name__)

TOO_LONG = "prompt too long"
"""`finish_reason` of problems whose prompt fills the context window, so that there is no completion."""


@dataclass(frozen=True)
class Sample:
    """One completion of a problem."""

    task_id: str
    sample: int
    """Number among the problem's completions."""
    completion: str
    finish_reason: str


def evaluate_code(settings: CodeEvaluation, generator: Generator | None = None) -> dict[str, Any]:
    """Generate, test and count; returns the content of result.json.

    generator: required without `settings.completions`. Raises ConfigError when the folder holds a different evaluation
    or there is no sandbox, DataError for broken files.
    """
    runner = SandboxRunner(settings.sandbox, settings.limits)
    problems = read_problems(settings.task, settings.data)
    request = _request(settings, problems)
    claim(settings.output, request)
    given = read_completions(settings.completions, problems, settings.k) if generator is None else []
    left_out = _left_out(settings, runner, problems)
    judged = [problem for problem in problems if problem.task_id not in left_out]
    samples = _generate(settings, generator, judged) if generator else [s for s in given if s.task_id not in left_out]
    tested = _test(settings, runner, judged, samples)
    metrics = summarize(tested, settings.k)
    metrics["left_out"] = {"problems": len(left_out), "reasons": left_out}
    if settings.chat:
        answered = [line for line in tested if line["finish_reason"] != TOO_LONG]
        metrics["fences"] = {"with": sum(line["fenced"] for line in answered), "responses": len(answered)}
    return write_result(settings.output, request, metrics)


def _left_out(settings: CodeEvaluation, runner: SandboxRunner, problems: list[Problem]) -> dict[str, str]:
    """{task_id: reason} of problems that cannot be judged because their reference solution fails.

    Raises DataError when no other problem is left.
    """

    def judge(problem: Problem) -> Verdict:
        return runner.run_reference(problem.job(problem.solution))

    path = settings.output / "references.jsonl"
    known = {line["task_id"]: line for line in read_whole_jsonl(path)}
    missing = [(problem, {"task_id": problem.task_id}) for problem in problems if problem.task_id not in known]
    known |= {line["task_id"]: line for line in _judge_all(settings, path, missing, judge, "references", len(known))}
    # In the order of the problems, not in the order in which their tests ended.
    failed = {p.task_id: known[p.task_id]["reason"] for p in problems if not known[p.task_id]["passed"]}
    for task_id, reason in failed.items():
        log.warning("%s is left out: its own reference solution fails its tests (%s)", task_id, reason)
    if len(failed) == len(problems):
        first = failed[problems[0].task_id]
        raise DataError(f"{settings.data}: no problem can be judged: all reference solutions fail, the first: {first}")
    return failed


def read_completions(path: Path, problems: list[Problem], k: Iterable[int] = (1,)) -> list[Sample]:
    """Completions of a file, numbered per problem. Raises DataError unless each problem has max(k) or more."""
    known, counts, samples = {problem.task_id for problem in problems}, Counter(), []
    if not path.is_file():
        raise DataError(f"there is no file of completions at {path}")
    unread: Counter[str] = Counter()
    for record, place in records(path):
        line = record if isinstance(record, dict) else {}
        task_id, completion = str(line.get("task_id")), line.get("completion")
        if task_id not in known:
            raise DataError(f"{place}: this completion is for {task_id!r}, which the data file does not hold")
        if not isinstance(completion, str):
            raise DataError(f"{place}: the field 'completion' has no text")
        unread.update(name for name in line if name not in ("task_id", "completion"))
        samples.append(Sample(task_id, counts[task_id], completion, "given"))
        counts[task_id] += 1
    log_unread(path, unread)
    few = [problem.task_id for problem in problems if counts[problem.task_id] < max(k)]
    if few:
        raise DataError(
            f"{path}: pass@{max(k)} needs {max(k)} completions of every problem; {len(few)} problems have fewer, "
            f"such as {few[0]}"
        )
    return samples


def summarize(samples: list[dict[str, Any]], k: Iterable[int]) -> dict[str, Any]:
    """Counts and pass@k of tested samples."""
    by_problem = defaultdict(list)
    for sample in samples:
        by_problem[sample["task_id"]].append(sample["passed"])
    counts = [(len(passed), sum(passed)) for passed in by_problem.values()]
    estimates = {}
    for each in k:
        found = estimate(counts, each)
        single = len(counts) == 1  # the standard error is NaN, which JSON does not have
        estimates[str(each)] = {
            "value": found.value,
            "standard_error": None if single else found.standard_error,
            "interval_95": None if single else list(found.interval),
        }
    return {
        "counts": {
            "problems": len(counts),
            "problems_solved": sum(c > 0 for _, c in counts),
            "samples": len(samples),
            "samples_passed": sum(c for _, c in counts),
            "prompts_too_long": sum(sample["finish_reason"] == TOO_LONG for sample in samples),
        },
        "pass_at_k": estimates,
    }


def _request(settings: CodeEvaluation, problems: list[Problem]) -> dict[str, Any]:
    generated = settings.checkpoint is not None
    sampler = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    return request_of(
        settings,
        {"problems": len(problems)},
        prompts_sha256=prompt_hash(problems, settings.chat),
        chat=settings.chat,
        n=settings.n if generated else None,
        sampler=sampler if generated else None,
        stop=sorted({stop for problem in problems for stop in _stop(settings, problem)}) if generated else None,
    )


def _generate(settings: CodeEvaluation, generator: Generator, problems: list[Problem]) -> list[Sample]:
    """Samples of all problems, including those already in completions.jsonl."""
    path = settings.output / "completions.jsonl"
    samples = [Sample(**line) for line in read_whole_jsonl(path)]
    counts = Counter(sample.task_id for sample in samples)
    missing = [problem for problem in problems if counts[problem.task_id] < settings.n]
    together = max(1, settings.batch_size // settings.n)
    total = settings.n * len(problems)
    with path.open("a", encoding="utf-8") as file, progress(total, "sample", "generating", len(samples)) as bar:
        for start in range(0, len(missing), together):
            new = _generate_batch(settings, generator, missing[start : start + together])
            # All samples of a problem in one write: they share a random stream, so the file must have all or none.
            append_jsonl(file, [asdict(sample) for sample in new])
            samples += new
            bar.update(len(new))
    return samples


def _generate_batch(settings: CodeEvaluation, generator: Generator, problems: list[Problem]) -> list[Sample]:
    prompts, owners, samples = [], [], []
    for problem in problems:
        tokens = _prompt(settings, generator, problem)
        if len(tokens) >= generator.window:
            log.warning("%s does not fit the context window: it counts as failed", problem.task_id)
            samples += [Sample(problem.task_id, number, "", TOO_LONG) for number in range(settings.n)]
            continue
        prompts += [tokens] * settings.n
        owners += [(problem, number) for number in range(settings.n)]
    sampling = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop=_stop(settings, problems[0]),  # all problems of a set have the same
        seed=settings.seed,
    )
    for (problem, number), out in zip(owners, generator.generate(prompts, sampling), strict=True):
        text = out.text if settings.chat else problem.truncate(out.text)
        samples.append(Sample(problem.task_id, number, text, out.finish_reason))
    return samples


def _prompt(settings: CodeEvaluation, generator: Generator, problem: Problem) -> list[int]:
    if settings.chat:
        return chat_prompt(generator.tokenizer, [Message("user", problem.question)])
    if problem.suffix is None:
        return generator.tokenizer.encode(problem.prompt)
    return generator.prompts.fim_prompt(problem.prompt, problem.suffix)


def _stop(settings: CodeEvaluation, problem: Problem) -> tuple[str, ...]:
    """Stop strings; none in chat, where a response ends with its end token."""
    return () if settings.chat else problem.stop


def _test(
    settings: CodeEvaluation, runner: SandboxRunner, problems: list[Problem], samples: list[Sample]
) -> list[dict[str, Any]]:
    """Samples with their verdicts, including those already in samples.jsonl."""
    path = settings.output / "samples.jsonl"
    by_id = {problem.task_id: problem for problem in problems}
    tested = read_whole_jsonl(path)
    done = {(sample["task_id"], sample["sample"]) for sample in tested}

    def judge(sample: Sample) -> Verdict:
        if sample.finish_reason == TOO_LONG:  # not run, because a program with an empty gap could pass
            return Verdict(False, TOO_LONG, 0.0)
        problem = by_id[sample.task_id]
        return runner.run(problem.chat_job(sample.completion)[0] if settings.chat else problem.job(sample.completion))

    def about(sample: Sample) -> dict[str, Any]:
        fenced = {"fenced": by_id[sample.task_id].chat_job(sample.completion)[1]} if settings.chat else {}
        return asdict(sample) | fenced

    missing = [(sample, about(sample)) for sample in samples if (sample.task_id, sample.sample) not in done]
    return tested + _judge_all(settings, path, missing, judge, "testing", len(tested))


def _judge_all(
    settings: CodeEvaluation,
    path: Path,
    subjects: list[tuple[Any, dict[str, Any]]],
    judge: Callable[[Any], Verdict],
    title: str,
    done: int,
) -> list[dict[str, Any]]:
    """Judge the subjects of (subject, fields to write) pairs; appends each verdict to the file when it is ready."""
    lines: list[dict[str, Any]] = []
    pool = ThreadPoolExecutor(settings.workers)
    try:
        with path.open("a", encoding="utf-8") as file, progress(done + len(subjects), "program", title, done) as bar:
            futures = {pool.submit(judge, subject): about for subject, about in subjects}
            for future in as_completed(futures):
                lines.append(futures[future] | asdict(future.result()))
                append_jsonl(file, [lines[-1]])
                bar.update(1)
                bar.set_postfix(passed=sum(line["passed"] for line in lines), refresh=False)
    finally:
        pool.shutdown(cancel_futures=True)
    return lines
