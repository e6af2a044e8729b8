"""An evaluation on programming problems: completions by a model or from a file, their verdicts, and pass@k.

Beside request.json and result.json its folder holds completions.jsonl and samples.jsonl, a line each, as they come.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.errors import DataError
from megagpt.evaluate.code_tasks import Problem, prompt_hash, read_problems
from megagpt.evaluate.output_folder import append_jsonl, claim, read_whole_jsonl, request_of, write_result
from megagpt.evaluate.pass_at_k import estimate
from megagpt.evaluate.sandbox import SandboxRunner, Verdict
from megagpt.evaluate.settings import CodeEvaluation
from megagpt.log import progress
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.train.metrics import read_jsonl

log = logging.getLogger(__name__)

TOO_LONG = "prompt too long"
"""Why a problem whose prompt fills the context window has no completion."""


@dataclass(frozen=True)
class Sample:
    """One completion of a problem."""

    task_id: str
    sample: int
    """Number among the problem's completions."""
    completion: str
    finish_reason: str


def evaluate_code(settings: CodeEvaluation, generator: Generator | None = None) -> dict[str, Any]:
    """Generate, test and count; returns what result.json holds. `generator` is needed without `settings.completions`.

    Raises ConfigError when the folder holds another evaluation or there is no sandbox, DataError for broken files.
    """
    runner = SandboxRunner(settings.sandbox, settings.limits)
    problems = read_problems(settings.task, settings.data)
    request = _request(settings, problems)
    claim(settings.output, request)
    if generator is None:
        samples = read_completions(settings.completions, problems, settings.k)
    else:
        samples = _generate(settings, generator, problems)
    metrics = summarize(_test(settings, runner, problems, samples), settings.k)
    return write_result(settings.output, request, metrics)


def read_completions(path: Path, problems: list[Problem], k: Iterable[int] = (1,)) -> list[Sample]:
    """Completions of a file, numbered for every problem. Raises DataError unless each problem has max(k) or more."""
    known, counts, samples = {problem.task_id for problem in problems}, Counter(), []
    if not path.is_file():
        raise DataError(f"there is no file of completions at {path}")
    for number, line in enumerate(read_jsonl(path), 1):
        task_id, completion = str(line.get("task_id")), line.get("completion")
        if task_id not in known:
            raise DataError(f"{path}: completion {number} is for {task_id!r}, which the data file does not hold")
        if not isinstance(completion, str):
            raise DataError(f"{path}: completion {number} has no text in its field 'completion'")
        samples.append(Sample(task_id, counts[task_id], completion, "given"))
        counts[task_id] += 1
    few = [problem.task_id for problem in problems if counts[problem.task_id] < max(k)]
    if few:
        raise DataError(
            f"{path}: pass@{max(k)} needs {max(k)} completions of every problem; {len(few)} problems have fewer, "
            f"{few[0]} among them"
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
        single = len(counts) == 1  # JSON has no NaN
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
        },
        "pass_at_k": estimates,
    }


def _request(settings: CodeEvaluation, problems: list[Problem]) -> dict[str, Any]:
    generated = settings.checkpoint is not None
    sampler = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    return request_of(
        settings,
        {"problems": len(problems)},
        prompts_sha256=prompt_hash(problems),
        n=settings.n if generated else None,
        sampler=sampler if generated else None,
        stop=sorted({stop for problem in problems for stop in problem.stop}) if generated else None,
    )


def _generate(settings: CodeEvaluation, generator: Generator, problems: list[Problem]) -> list[Sample]:
    """Samples of all problems, those of completions.jsonl among them."""
    path = settings.output / "completions.jsonl"
    samples = [Sample(**line) for line in read_whole_jsonl(path)]
    counts = Counter(sample.task_id for sample in samples)
    missing = [problem for problem in problems if counts[problem.task_id] < settings.n]
    together = max(1, settings.batch_size // settings.n)
    total = settings.n * len(problems)
    with path.open("a", encoding="utf-8") as file, progress(total, "sample", "generating", len(samples)) as bar:
        for start in range(0, len(missing), together):
            new = _generate_batch(settings, generator, missing[start : start + together])
            # All samples of a problem in one write: its random numbers are drawn together.
            append_jsonl(file, [asdict(sample) for sample in new])
            samples += new
            bar.update(len(new))
    return samples


def _generate_batch(settings: CodeEvaluation, generator: Generator, problems: list[Problem]) -> list[Sample]:
    prompts, owners, samples = [], [], []
    for problem in problems:
        tokens = _prompt(generator, problem)
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
        stop=problems[0].stop,  # the same for all problems of a set
        seed=settings.seed,
    )
    for (problem, number), out in zip(owners, generator.generate(prompts, sampling), strict=True):
        samples.append(Sample(problem.task_id, number, problem.truncate(out.text), out.finish_reason))
    return samples


def _prompt(generator: Generator, problem: Problem) -> list[int]:
    if problem.suffix is None:
        return generator.tokenizer.encode(problem.prompt)
    return generator.fim_prompt(problem.prompt, problem.suffix)


def _test(
    settings: CodeEvaluation, runner: SandboxRunner, problems: list[Problem], samples: list[Sample]
) -> list[dict[str, Any]]:
    """Samples with their verdicts, those of samples.jsonl among them."""
    path = settings.output / "samples.jsonl"
    by_id = {problem.task_id: problem for problem in problems}
    tested = read_whole_jsonl(path)
    done = {(sample["task_id"], sample["sample"]) for sample in tested}
    missing = [sample for sample in samples if (sample.task_id, sample.sample) not in done]

    def verdict(sample: Sample) -> Verdict:
        if sample.finish_reason == TOO_LONG:  # not run: a gap that was left empty may pass
            return Verdict(False, TOO_LONG, 0.0)
        return runner.run(by_id[sample.task_id].job(sample.completion))

    pool = ThreadPoolExecutor(settings.workers)
    try:
        with path.open("a", encoding="utf-8") as file, progress(len(samples), "sample", "testing", len(tested)) as bar:
            futures = {pool.submit(verdict, sample): sample for sample in missing}
            for future in as_completed(futures):
                line = asdict(futures[future]) | asdict(future.result())
                append_jsonl(file, [line])
                tested.append(line)
                bar.update(1)
                bar.set_postfix(passed=sum(sample["passed"] for sample in tested), refresh=False)
    finally:
        pool.shutdown(cancel_futures=True)
    return tested
