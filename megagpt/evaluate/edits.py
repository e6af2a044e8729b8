"""Evaluates editing by instruction: exact match, similarity, and whether repaired functions pass their tests.

First the right output of each edit with tests is tested. If it fails, the edit cannot judge a model and is left out;
the log has its number.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.chat import chat_prompt
from megagpt.data.conversations import records
from megagpt.data.edits.edit import Edit
from megagpt.data.files import write_atomic
from megagpt.data.shapes import edit_messages
from megagpt.data.unread import log_unread
from megagpt.errors import DataError
from megagpt.evaluate.greedy import greedy_responses
from megagpt.evaluate.output_folder import claim, request_of, write_result
from megagpt.evaluate.sandbox import SandboxJob, SandboxRunner
from megagpt.evaluate.settings import EditEvaluation
from megagpt.model.generation import Generator

log = logging.getLogger(__name__)


def evaluate_edits(settings: EditEvaluation, generator: Generator | None = None) -> dict[str, Any]:
    """Generate, test and count; returns the content of result.json.

    generator: required without `settings.completions`. Also writes samples.jsonl, every edit with its response. Raises
    ConfigError when the folder holds a different evaluation or there is no sandbox, DataError for broken files.
    """
    edits = read_edits(settings.data)
    total, edits = len(edits), edits[: settings.limit]
    if len(edits) < total:
        log.info("limit=%d: the first %d of the %d edits are evaluated", settings.limit, len(edits), total)
    runner = SandboxRunner(settings.sandbox, settings.limits)
    sampler = {"temperature": 0, "max_new_tokens": settings.max_new_tokens}
    request = request_of(settings, {"edits": len(edits)}, sampler=sampler if generator else None)
    claim(settings.output, request)
    given = read_responses(settings.completions, len(edits)) if generator is None else None
    left_out = _left_out(settings, runner, edits)
    judged = [place for place in range(len(edits)) if place not in left_out]
    edits = [edits[place] for place in judged]
    if given is None:
        responses = generate_edits(generator, edits, settings.max_new_tokens)
    else:
        responses = [given[place] for place in judged]
    samples = score_edits(edits, responses, runner, settings.workers)
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_atomic(settings.output / "samples.jsonl", lines.encode())
    reasons = {f"edit {place + 1}": reason for place, reason in left_out.items()}
    metrics = {"metrics": summarize(samples), "left_out": {"edits": len(left_out), "reasons": reasons}}
    return write_result(settings.output, request, metrics)


def _left_out(settings: EditEvaluation, runner: SandboxRunner, edits: Sequence[Edit]) -> dict[int, str]:
    """{index: reason} of edits that cannot be judged because their right output fails their tests.

    Raises DataError when no other edit is left.
    """
    tested = [(place, edit) for place, edit in enumerate(edits) if edit.tests is not None]
    with ThreadPoolExecutor(settings.workers) as pool:
        verdicts = list(pool.map(lambda one: runner.run_reference(_job(one[1], one[1].output)), tested))
    failed = {place: verdict.reason for (place, _), verdict in zip(tested, verdicts, strict=True) if not verdict.passed}
    for place, reason in failed.items():
        log.warning("edit %d is left out: its own output fails its tests (%s)", place + 1, reason)
    if len(failed) == len(edits):
        raise DataError(
            f"{settings.data}: no edit can be judged: all their own outputs fail their tests, the first: {failed[0]}"
        )
    return failed


def _job(edit: Edit, response: str) -> SandboxJob:
    return SandboxJob(response, edit.output, (edit.function,), edit.tests)


def read_edits(path: Path) -> list[Edit]:
    """The edits of a file. The log names and counts unknown fields.

    Raises DataError that names file and line of an invalid record.
    """
    known, edits, unread = {field.name for field in fields(Edit)}, [], Counter()
    for record, place in records(path):
        try:
            edit = Edit(**{"kind": "edit"} | {name: value for name, value in record.items() if name in known})
        except (TypeError, AttributeError):
            raise DataError(f'{place}: an edit needs "instruction", "input" and "output"') from None
        if not all(isinstance(text, str) for text in (edit.instruction, edit.input, edit.output)):
            raise DataError(f'{place}: "instruction", "input" and "output" must be texts')
        if not all(isinstance(text, str | None) for text in (edit.kind, edit.tests, edit.function)):
            raise DataError(f'{place}: "kind", "tests" and "function" must be texts')
        if (edit.tests is None) != (edit.function is None):
            raise DataError(f'{place}: "tests" go with "function", the name that they call; one of them is missing')
        unread.update(name for name in record if name not in known)
        edits.append(edit)
    if not edits:
        raise DataError(f"{path} holds no edit")
    log_unread(path, unread)
    return edits


def generate_edits(generator: Generator, edits: Sequence[Edit], max_new_tokens: int) -> list[str | None]:
    """The model's response to each edit, by greedy decoding; None if the prompt fills the context."""
    prompts = [chat_prompt(generator.tokenizer, edit_messages(edit.instruction, edit.input)) for edit in edits]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < generator.window]
    if len(fitting) < len(prompts):
        missing = len(prompts) - len(fitting)
        log.warning(
            "%d of %d edits fill the context window of %d tokens: without a response, they count as wrong",
            missing,
            len(prompts),
            generator.window,
        )
    responses: list[str | None] = [None] * len(edits)
    made = greedy_responses(generator, [prompts[index] for index in fitting], max_new_tokens, "edits", "generating")
    for index, response in zip(fitting, made, strict=True):
        responses[index] = response
    return responses


def similarity(first: str, second: str) -> float:
    """1 - d / n, where d is the Levenshtein distance and n the length of the longer text; 1 for two empty texts."""
    longer = max(len(first), len(second))
    return 1 - levenshtein(first, second) / longer if longer else 1.0


def levenshtein(first: str, second: str) -> int:
    """Smallest number of character insertions, deletions and replacements that turn `first` into `second`."""
    a, b = (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in (first, second))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for number, character in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (b != character))
        # Insertions along the row: row[i] = min over j <= i of best[j] + (i - j).
        row = np.minimum.accumulate(np.concatenate(([number], best)) - steps) + steps
    return int(row[-1])


def score_edits(
    edits: Sequence[Edit], responses: Sequence[str | None], runner: SandboxRunner, workers: int
) -> list[dict[str, Any]]:
    """One record per edit: the response with `exact_match`, `similarity` and `passed` (None without tests).

    A response of None, see `generate_edits`, counts as empty.
    """

    def run_tests(edit: Edit, response: str | None) -> bool | None:
        return None if edit.tests is None else runner.run(_job(edit, response or "")).passed

    with ThreadPoolExecutor(workers) as pool:
        passed = list(pool.map(run_tests, edits, responses))
    return [
        {
            "kind": edit.kind,
            "instruction": edit.instruction,
            "input": edit.input,
            "output": edit.output,
            "response": response or "",
            "prompt_too_long": response is None,
            "exact_match": response == edit.output,
            "similarity": similarity(response or "", edit.output),
            "passed": verdict,
        }
        for edit, response, verdict in zip(edits, responses, passed, strict=True)
    ]


def summarize(samples: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over "all" edits and over each kind, for the responses and for a baseline that returns the input."""
    groups = defaultdict(list)
    for sample in samples:
        groups["all"].append(sample)
        groups[sample["kind"]].append(sample)
    return {name: _means(group) for name, group in groups.items()}


def _means(group: list[dict[str, Any]]) -> dict[str, float]:
    tested = [one["passed"] for one in group if one["passed"] is not None]
    metrics = {
        "edits": len(group),
        "prompts_too_long": sum(one["prompt_too_long"] for one in group),
        "exact_match": float(np.mean([one["exact_match"] for one in group])),
        "similarity": float(np.mean([one["similarity"] for one in group])),
        "unchanged_exact_match": float(np.mean([one["input"] == one["output"] for one in group])),
        "unchanged_similarity": float(np.mean([similarity(one["input"], one["output"]) for one in group])),
    }
    return metrics | ({"tests_passed": float(np.mean(tested)), "tested": len(tested)} if tested else {})


def read_responses(path: Path, count: int) -> list[str]:
    """The `count` responses of a file, one {"response": "..."} per line, in the order of the edits.

    Raises DataError for an invalid record or another number of responses.
    """
    responses, unread = [], Counter()
    for record, place in records(path):
        if not isinstance(record, dict) or not isinstance(record.get("response"), str):
            raise DataError(f'{place}: the field "response" has no text')
        responses.append(record["response"])
        unread.update(name for name in record if name != "response")
    log_unread(path, unread)
    if len(responses) != count:
        raise DataError(
            f"{path} has {len(responses)} responses to {count} edits: it needs one for each, in their order"
        )
    return responses
