"""megagpt's own tasks by GPT-3's protocol: what answers of a model that is right, and of one that is not, are worth."""

import pytest

pytest.importorskip("lm_eval")

from megagpt.data.rules import questions
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.gpt3 import evaluate_gpt3
from megagpt.evaluate.in_context.run import run_tasks
from megagpt.evaluate.in_context.task_files import load_tasks
from tests.evaluate.in_context.gpt3_models import TableLM, choice_task


@pytest.mark.parametrize(
    ("name", "metric", "right", "nearly", "value"),
    [
        ("gsm8k", "exact_match", " They are 9 * 2 = 18.\n#### 18", " They are 18.", 0),
        ("xquad_zh", "f1", " 308。", " 共308", 2 / 3),
        ("cmrc2018", "f1", " 光荣和ω-force，", " ω-force和光荣", 4 / 8),  # 光荣, 2 of 4 words in both
    ],
)
def test_what_is_written_is_judged_as_the_authors_do(data_dir, name, metric, right, nearly, value):
    (task,) = load_tasks([name], data_dir)
    found = {}
    for text in (right, nearly):
        lm = TableLM(writes=lambda prompt, text=text: text, context=20_000)
        outcome = evaluate_gpt3(lm, task, 1, seed=0, limit=1)
        assert (outcome.main_metric, outcome.examples[0].shots) == (metric, 1)
        found[text] = outcome.metrics[metric]
    assert found == {right: 1.0, nearly: pytest.approx(value)}


def look_up(context: str, answer: str) -> float:
    """Likely is what an earlier line says of the same input."""
    *lines, asked = context.split("\n")
    return 0.0 if asked + answer in lines else -1.0


@pytest.mark.parametrize("kind", ["mapping", "pattern", "phrases"])
def test_a_rule_is_shown_by_examples_of_its_own(kind):
    (task,) = load_tasks([f"rules_{kind}"], None)
    outcome = evaluate_gpt3(TableLM(look_up), task, 8, seed=0)
    asked = list(questions(200, 0, [kind]))
    for example, one in zip(outcome.examples, asked, strict=True):
        lines = [f"{shown['input']}{shown['answer']}\n" for shown in one["examples"][:8]]
        assert example.prompt == "".join(lines) + one["input"]
        assert (example.target, example.shots) == (one["answer"], 8)
    if kind != "pattern":  # whose inputs do not come again
        inputs = [one["input"] in [shown["input"] for shown in one["examples"][:8]] for one in asked]
        found = sum(
            example.metrics["acc"] == 1 for example, shown in zip(outcome.examples, inputs, strict=True) if shown
        )
        assert found == sum(inputs) > 150


def test_a_question_shows_no_more_than_its_own_examples():
    (task,) = load_tasks(["rules_words"], None)
    outcome = evaluate_gpt3(TableLM(), task, 20, seed=0, limit=5)
    assert {example.shots for example in outcome.examples} == {15}
    [note] = [note for note in outcome.notes if "shots" in note]
    assert note == (
        "5 of 5 prompts have 15 shots instead of 20: no more fit the context of 1000 tokens, "
        "or a question has no more demonstrations of its own"
    )


def test_a_task_of_which_nothing_fits_is_refused_before_another_is_asked(data_dir):
    lm = TableLM(context=100)
    with pytest.raises(DataError, match=r"task cmrc2018, question .* no question of the task fits: leave the task out"):
        list(run_tasks(lm, tasks=["rules_words", "cmrc2018"], protocol="gpt3", data=data_dir, limit=3))
    assert not lm.calls


def test_a_sampler_that_the_protocol_does_not_use_is_refused(tmp_path):
    from megagpt.evaluate.in_context.rule_tasks import SameRule

    docs = [{"q": "q", "options": ["a", "b"], "label": 0}]
    task = choice_task(tmp_path, docs, docs)
    task.fewshot_cfg.sampler = SameRule
    with pytest.raises(ConfigError, match="task quiz chooses its demonstrations by its own SameRule"):
        evaluate_gpt3(TableLM(), task, 1, seed=0)
