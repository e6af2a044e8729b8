"""The tasks of rules in lm-eval: prompts are beginnings of documents, and only who reads the examples can answer."""

from pathlib import Path

import pytest
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from megagpt.data.rules import HELD_OUT_KINDS, KINDS, questions
from megagpt.errors import ConfigError
from megagpt.evaluate import in_context

KINDS_OF_TASKS = [*KINDS, *HELD_OUT_KINDS]


@pytest.fixture(scope="module")
def tasks():
    folder = Path(in_context.__file__).parent / "tasks"
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata={"data": "unused"})
    return manager.load(["rules"])["tasks"]


class Lookup(LM):
    """Gives the answer of an example with the same input, where the prompt has one, else the first choice."""

    def loglikelihood(self, requests):
        found = []
        for prompt, choice in (request.args for request in requests):
            *lines, asked = prompt.split("\n")
            found.append((1.0 if asked + choice in lines else 0.0, False))
        return found

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def test_there_is_a_task_for_every_kind_with_its_chance(tasks):
    assert list(tasks) == [f"rules_{kind}" for kind in KINDS_OF_TASKS]
    for kind in KINDS_OF_TASKS:
        chance = [1 / len(one["choices"]) for one in questions(2000, 1, [kind])]
        assert tasks[f"rules_{kind}"].config.metadata["chance"] == pytest.approx(sum(chance) / len(chance), abs=0.004)


@pytest.mark.parametrize("kind", KINDS_OF_TASKS)
@pytest.mark.parametrize("shots", [0, 1, 8, 15])
def test_a_prompt_is_the_beginning_of_a_document_of_the_questions_rule(tasks, kind, shots):
    task = tasks[f"rules_{kind}"]
    for doc, question in zip(task.test_docs(), questions(200, 0, [kind]), strict=True):
        lines = [f"{one['input']}{one['answer']}\n" for one in question["examples"][:shots]]
        assert task.fewshot_context(doc, shots) == "".join(lines) + question["input"]
        assert task.doc_to_choice(doc)[task.doc_to_target(doc)] == question["answer"]
    assert (task.config.target_delimiter, task.config.fewshot_delimiter) == ("", "\n")


def test_more_demonstrations_than_a_question_has_are_refused(tasks):
    task = tasks["rules_words"]
    with pytest.raises(ConfigError, match=r"has 15 examples of its rule, too few for shots=\[16\]"):
        task.fewshot_context(task.test_docs()[0], 16)


def test_who_looks_answers_up_is_right_as_often_as_the_input_was_shown(tasks):
    task = tasks["rules_mapping"]
    found = {}
    for shots in (0, 8):
        task.set_config("num_fewshot", shots)
        results = evaluator.evaluate(Lookup(), {"tasks": {"rules_mapping": task}, "groups": {}}, bootstrap_iters=0)
        found[shots] = results["results"]["rules_mapping"]["acc,none"]
    asked = list(questions(200, 0, ["mapping"]))
    first = [one["choices"][0] == one["answer"] for one in asked]
    shown = [one["input"] in [example["input"] for example in one["examples"][:8]] for one in asked]
    assert found[0] == pytest.approx(sum(first) / 200)
    assert found[8] == pytest.approx(sum(map(max, first, shown)) / 200)
    assert found[8] > found[0] + 0.5
