"""How well a model edits by instruction: exact matches, similarity, and whether repaired functions pass their tests."""

import json
from collections import defaultdict
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
from megagpt.errors import DataError
from megagpt.evaluate.output_folder import claim, request_of, write_result
from megagpt.evaluate.sandbox import SandboxJob, SandboxRunner
from megagpt.evaluate.settings import EditEvaluation
from megagpt.log import progress
from megagpt.model.generation import GenerationConfig, Generator


def evaluate_edits(settings: EditEvaluation, generator: Generator | None = None) -> dict[str, Any]:
    """Generate, test and count; returns what result.json holds. `generator` is needed without `settings.completions`.

    The folder also gets samples.jsonl, every edit with its response. Raises ConfigError when it holds another
    evaluation or there is no sandbox, DataError for broken files.
    """
    edits = read_edits(settings.data)[: settings.limit]
    runner = SandboxRunner(settings.sandbox, settings.limits)
    sampler = {"temperature": 0, "max_new_tokens": settings.max_new_tokens}
    request = request_of(settings, {"edits": len(edits)}, sampler=sampler if generator else None)
    claim(settings.output, request)
    if generator is None:
        responses = read_responses(settings.completions, len(edits))
    else:
        responses = generate_edits(generator, edits, settings.max_new_tokens)
    samples = score_edits(edits, responses, runner, settings.workers)
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_atomic(settings.output / "samples.jsonl", lines.encode())
    return write_result(settings.output, request, {"metrics": summarize(samples)})


def read_edits(path: Path) -> list[Edit]:
    """The edits of a file. Raises DataError naming file and line of a record that is none."""
    known, edits = {field.name for field in fields(Edit)}, []
    for record, place in records(path):
        try:
            edit = Edit(**{"kind": "edit"} | {name: value for name, value in record.items() if name in known})
        except (TypeError, AttributeError):
            raise DataError(f'{place}: an edit needs "instruction", "input" and "output"') from None
        if not all(isinstance(text, str) for text in (edit.instruction, edit.input, edit.output)):
            raise DataError(f'{place}: "instruction", "input" and "output" must be texts')
        edits.append(edit)
    if not edits:
        raise DataError(f"{path} holds no edit")
    return edits


def generate_edits(generator: Generator, edits: Sequence[Edit], max_new_tokens: int) -> list[str]:
    """The model's response to each edit, by greedy decoding.

    An edit whose prompt leaves no room in the context window gets an empty response, which is wrong.
    """
    prompts = [chat_prompt(generator.tokenizer, edit_messages(edit.instruction, edit.input)) for edit in edits]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < generator.window]
    responses, settings = [""] * len(edits), GenerationConfig(max_new_tokens=max_new_tokens, temperature=0)
    with progress(len(fitting), "edits", "generating") as bar:
        for start in range(0, len(fitting), generator.batch_size):
            chosen = fitting[start : start + generator.batch_size]
            for index, out in zip(chosen, generator.generate([prompts[i] for i in chosen], settings), strict=True):
                responses[index] = out.text
            bar.update(len(chosen))
    return responses


def similarity(first: str, second: str) -> float:
    """1 - d / n, with d the Levenshtein distance of two texts and n the longer one's length; 1 for two empty ones."""
    longer = max(len(first), len(second))
    return 1 - levenshtein(first, second) / longer if longer else 1.0


def levenshtein(first: str, second: str) -> int:
    """Least number of characters to insert, delete or replace to turn `first` into `second`."""
    a, b = (np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in (first, second))
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for number, character in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (b != character))
        # Insertions run along the row: the least of best[j] + (i - j) over j <= i.
        row = np.minimum.accumulate(np.concatenate(([number], best)) - steps) + steps
    return int(row[-1])


def score_edits(
    edits: Sequence[Edit], responses: Sequence[str], runner: SandboxRunner, workers: int
) -> list[dict[str, Any]]:
    """For each edit, its response with `exact_match`, `similarity` and, where it has tests, `passed`."""

    def run_tests(edit: Edit, response: str) -> bool | None:
        if edit.tests is None:
            return None
        return runner.run(SandboxJob(response, edit.output, (edit.function,), edit.tests)).passed

    with ThreadPoolExecutor(workers) as pool:
        passed = list(pool.map(run_tests, edits, responses))
    return [
        {
            "kind": edit.kind,
            "instruction": edit.instruction,
            "input": edit.input,
            "output": edit.output,
            "response": response,
            "exact_match": response == edit.output,
            "similarity": similarity(response, edit.output),
            "passed": verdict,
        }
        for edit, response, verdict in zip(edits, responses, passed, strict=True)
    ]


def summarize(samples: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over "all" edits and over each kind, and the same if the input were given back unchanged."""
    groups = defaultdict(list)
    for sample in samples:
        groups["all"].append(sample)
        groups[sample["kind"]].append(sample)
    return {name: _means(group) for name, group in groups.items()}


def _means(group: list[dict[str, Any]]) -> dict[str, float]:
    tested = [one["passed"] for one in group if one["passed"] is not None]
    metrics = {
        "edits": len(group),
        "exact_match": float(np.mean([one["exact_match"] for one in group])),
        "similarity": float(np.mean([one["similarity"] for one in group])),
        "unchanged_exact_match": float(np.mean([one["input"] == one["output"] for one in group])),
        "unchanged_similarity": float(np.mean([similarity(one["input"], one["output"]) for one in group])),
    }
    return metrics | ({"tests_passed": float(np.mean(tested)), "tested": len(tested)} if tested else {})


def read_responses(path: Path, count: int) -> list[str]:
    """The `count` responses of a file, {"response": "..."} a line, in the edits' order. Raises DataError."""
    responses = []
    for record, place in records(path):
        if not isinstance(record, dict) or not isinstance(record.get("response"), str):
            raise DataError(f'{place}: no text in the field "response"')
        responses.append(record["response"])
    if len(responses) != count:
        raise DataError(
            f"{path} has {len(responses)} responses to {count} edits: it needs one for each, in their order"
        )
    return responses
