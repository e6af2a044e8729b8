"""An evaluation on programming problems: completions by a model or from a file, their verdicts, and pass@k.

Its folder holds request.json (what was asked for), completions.jsonl and samples.jsonl (a line each, as they come) and,
at the end, result.json. Work that was interrupted goes on where it stopped.
"""

import json
import logging
import platform
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megagpt.data.files import file_sha256, write_atomic
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.code_tasks import Problem, prompt_hash, read_problems
from megagpt.evaluate.pass_at_k import estimate
from megagpt.evaluate.sandbox import Judge, Limits, Sandbox, Verdict
from megagpt.evaluate.settings import CodeEvaluation
from megagpt.log import progress
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.train.metrics import read_jsonl

log = logging.getLogger(__name__)

TOO_LONG = "prompt too long"
"""Why a problem whose prompt fills the context window has no completion."""


@dataclass(frozen=True)
class Asked:
    """A completion and where it belongs."""

    task_id: str
    sample: int
    completion: str
    finish_reason: str


def evaluate_code(settings: CodeEvaluation, generator: Generator | None = None) -> dict[str, Any]:
    """Generate, judge and count; returns what result.json holds. `generator` is needed without `settings.completions`.

    Raises ConfigError when the folder holds another evaluation or there is no sandbox, DataError for broken files.
    """
    judge = Judge(settings.sandbox, Limits(wall_seconds=settings.timeout))
    problems = read_problems(settings.task, settings.data)
    request = _request(settings, problems)
    claim(settings.output, request)
    if generator is None:
        asked = read_completions(settings.completions, problems, settings.k)
    else:
        asked = _generate(settings, generator, problems)
    samples = _judge(settings, judge, problems, asked)
    result = request | {"versions": versions(settings.sandbox)} | summarize(samples, settings.k)
    write_atomic(settings.output / "result.json", json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
    return result


def read_completions(path: Path, problems: list[Problem], k: Iterable[int] = (1,)) -> list[Asked]:
    """Completions of a file, numbered for every problem. Raises DataError unless each problem has max(k) or more."""
    known, counts, asked = {problem.task_id for problem in problems}, Counter(), []
    if not path.is_file():
        raise DataError(f"there is no file of completions at {path}")
    for number, line in enumerate(read_jsonl(path), 1):
        task_id, completion = str(line.get("task_id")), line.get("completion")
        if task_id not in known:
            raise DataError(f"{path}: completion {number} is for {task_id!r}, which the data file does not hold")
        if not isinstance(completion, str):
            raise DataError(f"{path}: completion {number} has no text in its field 'completion'")
        asked.append(Asked(task_id, counts[task_id], completion, "given"))
        counts[task_id] += 1
    few = [problem.task_id for problem in problems if counts[problem.task_id] < max(k)]
    if few:
        raise DataError(
            f"{path}: pass@{max(k)} needs {max(k)} completions of every problem; {len(few)} problems have fewer, "
            f"{few[0]} among them"
        )
    return asked


def summarize(samples: list[dict[str, Any]], k: Iterable[int]) -> dict[str, Any]:
    """Counts and pass@k of judged samples."""
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
    """What the figures depend on, as far as it is chosen; two evaluations with the same may be compared."""
    generated = settings.checkpoint is not None
    sampler = {name: getattr(settings, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    source = settings.checkpoint or settings.completions
    return {
        "task": settings.task,
        "data": {"file": settings.data.name, "sha256": file_sha256(settings.data), "problems": len(problems)},
        "prompts_sha256": prompt_hash(problems),
        "checkpoint": {"folder": str(source), "manifest_sha256": file_sha256(source / "manifest.json")}
        if generated
        else None,
        "completions": None if generated else {"file": source.name, "sha256": file_sha256(source)},
        "n": settings.n if generated else None,
        "sampler": sampler if generated else None,
        "stop": sorted({stop for problem in problems for stop in problem.stop}) if generated else None,
        "sandbox": settings.sandbox,
        "limits": asdict(Limits(wall_seconds=settings.timeout)),
    }


def claim(folder: Path, request: dict[str, Any]) -> None:
    """Begin in an empty folder, or go on with the same evaluation. Raises ConfigError when it holds another."""
    path = folder / "request.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in request if before.get(key) != json.loads(json.dumps(request[key]))]
        if different:
            raise ConfigError(
                f"{folder} holds an evaluation with another {', '.join(different)}: choose another output"
            )
        return
    write_atomic(path, json.dumps(request, indent=2).encode() + b"\n")


def _generate(settings: CodeEvaluation, generator: Generator, problems: list[Problem]) -> list[Asked]:
    path = settings.output / "completions.jsonl"
    asked = [Asked(**line) for line in _whole_lines(path)]
    counts = Counter(one.task_id for one in asked)
    missing = [problem for problem in problems if counts[problem.task_id] < settings.n]
    together = max(1, settings.batch_size // settings.n)
    total = settings.n * len(problems)
    with path.open("a", encoding="utf-8") as file, progress(total, "sample", "generating", len(asked)) as bar:
        for start in range(0, len(missing), together):
            new = _ask(settings, generator, missing[start : start + together])
            # All samples of a problem in one write: its random numbers are drawn together.
            _append(file, [asdict(one) for one in new])
            asked += new
            bar.update(len(new))
    return asked


def _ask(settings: CodeEvaluation, generator: Generator, problems: list[Problem]) -> list[Asked]:
    prompts, owners, asked = [], [], []
    for problem in problems:
        tokens = _tokens(generator, problem)
        if len(tokens) >= generator.window:
            log.warning("%s does not fit the context window: it counts as failed", problem.task_id)
            asked += [Asked(problem.task_id, sample, "", TOO_LONG) for sample in range(settings.n)]
            continue
        prompts += [tokens] * settings.n
        owners += [(problem, sample) for sample in range(settings.n)]
    sampling = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop=problems[0].stop,  # the same for all problems of a set
        seed=settings.seed,
    )
    for (problem, sample), out in zip(owners, generator.generate(prompts, sampling), strict=True):
        asked.append(Asked(problem.task_id, sample, problem.cut(out.text), out.finish_reason))
    return asked


def _tokens(generator: Generator, problem: Problem) -> list[int]:
    if problem.suffix is None:
        return generator.tokenizer.encode(problem.prompt)
    return generator.fim_prompt(problem.prompt, problem.suffix)


def _judge(settings: CodeEvaluation, judge: Judge, problems: list[Problem], asked: list[Asked]) -> list[dict[str, Any]]:
    """Samples with their verdicts, those of samples.jsonl among them."""
    path = settings.output / "samples.jsonl"
    by_id = {problem.task_id: problem for problem in problems}
    samples = _whole_lines(path)
    done = {(sample["task_id"], sample["sample"]) for sample in samples}
    missing = [one for one in asked if (one.task_id, one.sample) not in done]

    def verdict(one: Asked) -> Verdict:
        if one.finish_reason == TOO_LONG:  # what was not asked is not judged: a gap left empty may pass
            return Verdict(False, TOO_LONG, 0.0)
        return judge(by_id[one.task_id].task(one.completion))

    pool = ThreadPoolExecutor(settings.workers)
    try:
        with path.open("a", encoding="utf-8") as file, progress(len(asked), "sample", "judging", len(samples)) as bar:
            futures = {pool.submit(verdict, one): one for one in missing}
            for future in as_completed(futures):
                sample = asdict(futures[future]) | asdict(future.result())
                _append(file, [sample])
                samples.append(sample)
                bar.update(1)
                bar.set_postfix(passed=sum(sample["passed"] for sample in samples))
    finally:
        pool.shutdown(cancel_futures=True)
    return samples


def _append(file: Any, lines: list[dict[str, Any]]) -> None:
    file.write("".join(json.dumps(line) + "\n" for line in lines))
    file.flush()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, which from now on ends with a whole one; none when there is no file."""
    if not path.exists():
        return []
    lines = read_jsonl(path)
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines


def versions(sandbox: Sandbox) -> dict[str, str]:
    """Versions of what a figure depends on."""
    found = {name: version(name) for name in ("megagpt", "torch", "tokenizers")}
    found["python"] = platform.python_version()
    if sandbox == "bwrap":
        said = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True).stdout
        found["bubblewrap"] = re.sub(r"\D*", "", said, count=1).strip()
    return found
