"""GPT-3's scores of choices and of last words, against a full softmax over prompts that are written by hand."""

import math

import pytest

from megagpt.errors import ConfigError, DataError, TrainingDiverged
from megagpt.evaluate.in_context.gpt3 import evaluate_gpt3
from tests.evaluate.in_context.gpt3_models import TableLM, brute_force, choice_task, make_task, tiny_lm

SHOWN = {"q": "Question: is the grass green ?", "options": ["it is", "no"], "label": 0}
ASKED = [
    {"q": "Question: is the sky blue ?", "options": ["because it was", "no", "green green grass"], "label": 1},
    {"q": "Question: was the box big ?", "options": ["red", "it was small"], "label": 0},
]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.mark.parametrize("shots", [0, 1])
def test_choices_are_compared_by_likelihood_per_token(tmp_path, lm, shots):
    task = choice_task(tmp_path, [SHOWN], ASKED)
    outcome = evaluate_gpt3(lm, task, shots, seed=0)
    right = []
    for example, doc in zip(outcome.examples, ASKED, strict=True):
        prompt = "Question: is the grass green ? it is\n\n" * shots + doc["q"]
        assert example.prompt == prompt
        scored = [brute_force(lm, prompt, " " + option) for option in doc["options"]]
        expected = [total / tokens for total, tokens, _ in scored]
        assert example.scores == pytest.approx(expected, abs=1e-4)
        best = expected.index(max(expected))
        assert (example.answer, example.target) == (doc["options"][best], doc["options"][doc["label"]])
        right.append(best == doc["label"])
        assert example.metrics == {"acc": float(right[-1])}
    assert outcome.metrics == {"acc": sum(right) / 2}
    assert (outcome.main_metric, outcome.higher_is_better, outcome.version) == ("acc", True, "3")
    assert outcome.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert not outcome.notes


def test_per_token_is_not_the_sum(tmp_path):
    table = {("q", " ab"): -6.0, ("q", " c"): -5.0}  # three tokens, two tokens
    task = choice_task(tmp_path, [], [{"q": "q", "options": ["ab", "c"], "label": 0}])
    [example] = evaluate_gpt3(TableLM(table), task, 0, seed=0).examples
    assert (example.scores, example.answer) == ((-2.0, -2.5), "ab")


def test_answers_are_divided_by_their_likelihood_in_the_answer_context(tmp_path, lm):
    gpt3 = {"score": "answer_context", "answer_context": "Answer: "}
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, [SHOWN], ASKED, gpt3), 1, seed=0)
    for example, doc in zip(outcome.examples, ASKED, strict=True):
        prompt = "Question: is the grass green ? it is\n\n" + doc["q"]
        expected = [
            # The space that ends the answer context is the first of the answer's token; here are two of them.
            brute_force(lm, prompt, " " + option)[0] - brute_force(lm, "Answer:", "  " + option)[0]
            for option in doc["options"]
        ]
        assert example.scores == pytest.approx(expected, abs=1e-4)
        assert example.answer == doc["options"][expected.index(max(expected))]


def test_the_ratio_of_probabilities_knows_no_length(tmp_path):
    table = {("q", " ab"): -6.0, ("q", " c"): -5.0, ("Answer:", " ab"): -7.5, ("Answer:", " c"): -4.0}
    docs = [{"q": "q", "options": ["ab", "c"], "label": 0}] * 2
    lm = TableLM(table)
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, [], docs, {"score": "answer_context"}), 0, seed=0)
    assert [example.scores for example in outcome.examples] == [(1.5, -1.0)] * 2
    # All requests of a task go to the model at once, and each different one once.
    [requests] = lm.calls
    assert sorted(request[0] for request in requests) == sorted(table)


SENTENCES = [
    {"q": "the box was small because the _ was big.", "options": ["sky", "green grass"], "label": 1},
    {"q": "the sky was red because _ was the answer.", "options": ["blue", "it"], "label": 0},
]


@pytest.mark.parametrize("form", ["blank", "contexts"])
def test_partial_scoring_compares_the_rest_of_the_sentence(tmp_path, lm, form):
    shown = [{"q": "the _ is green.", "options": ["grass", "box"], "label": 0}]
    fields = {}
    if form == "contexts":  # lm-eval's form: doc_to_text is the place of the right context, doc_to_target the rest
        fields = {
            "doc_to_text": "label",
            "doc_to_choice": "{{[q.split('_')[0] + options[0], q.split('_')[0] + options[1]]}}",
            "doc_to_target": "{{q.split('_')[1]}}",
            "target_delimiter": "",
        }
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, shown, SENTENCES, {"score": "partial"}, **fields), 1, seed=0)
    for example, doc in zip(outcome.examples, SENTENCES, strict=True):
        before, rest = doc["q"].split("_")
        prompt = "the grass is green.\n\n" + before
        expected = [brute_force(lm, prompt + option, rest)[0] for option in doc["options"]]
        assert example.scores == pytest.approx(expected, abs=1e-4)
        best = expected.index(max(expected))
        assert example.answer == (before if form == "contexts" else "") + doc["options"][best]
        assert example.prompt + example.choices[best] == prompt + doc["options"][best]
        assert example.metrics == {"acc": float(best == doc["label"])}


def test_a_sentence_without_a_blank_is_an_error(tmp_path):
    task = choice_task(tmp_path, [], [{"q": "no blank", "options": ["a", "b"], "label": 1}], {"score": "partial"})
    with pytest.raises(DataError, match=r"task quiz, question 0: .*one blank"):
        evaluate_gpt3(TableLM(), task, 0, seed=0)


PASSAGES = [{"text": "the sky was blue because it was blue"}, {"text": "was the box big or was the box small"}]
FRAME = {
    "few_shot_text": "{{text.split()[:-1] | join(' ')}} ____. ->",
    "shots": 15,
    "perplexity": True,
}


@pytest.mark.parametrize("shots", [0, 1])
def test_last_words_plainly_and_in_the_cloze_frame(tmp_path, lm, shots):
    task = make_task(
        tmp_path,
        [{"text": "grass is green"}],
        PASSAGES,
        FRAME,
        output_type="loglikelihood",
        doc_to_text="{{text.split()[:-1] | join(' ')}}",
        doc_to_target="{{text.split()[-1]}}",
    )
    outcome = evaluate_gpt3(lm, task, shots, seed=0)
    starts = ["the sky was blue because it was", "was the box big or was the box"]
    prompts = [f"grass is ____. -> green\n\n{start} ____. ->" for start in starts] if shots else starts
    scored = [brute_force(lm, prompt, word) for prompt, word in zip(prompts, [" blue", " small"], strict=True)]
    assert [example.prompt for example in outcome.examples] == prompts
    assert [example.scores[0] for example in outcome.examples] == pytest.approx([s[0] for s in scored], abs=1e-4)
    assert [example.metrics["acc"] for example in outcome.examples] == [float(greedy) for _, _, greedy in scored]
    assert outcome.metrics["perplexity"] == pytest.approx(math.exp(-(scored[0][0] + scored[1][0]) / 2), rel=1e-4)
    assert outcome.aggregate == {"perplexity": "exp(-mean)"}
    assert outcome.chance is None


def test_a_last_word_is_right_if_the_model_would_write_it(tmp_path):
    table = {("a", " b"): -0.1, ("c", " d"): -2.0}  # TableLM is greedy above -0.5
    docs = [{"x": "a", "y": "b"}, {"x": "c", "y": "d"}]
    task = make_task(tmp_path, [], docs, None, output_type="loglikelihood", doc_to_text="x", doc_to_target="y")
    outcome = evaluate_gpt3(TableLM(table), task, 0, seed=0)
    assert outcome.metrics == {"acc": 0.5}
    assert [example.answer for example in outcome.examples] == ["b", ""]


def test_answers_have_the_names_that_the_block_gives_them(tmp_path):
    gpt3 = {
        "text": "{{q}}\nquestion: true or false?\nanswer:",
        "choices": ["False", "True"],
        "target": "label",
        "separator": "\n",
        "description": "Judge.",
        "chance": 0.4,
    }
    docs = [{"q": "one", "options": ["no", "yes"], "label": 1}]
    task = choice_task(tmp_path, [{"q": "two", "options": [], "label": 0}], docs, gpt3, doc_to_choice=["0", "1"])
    prompt = "Judge.\ntwo\nquestion: true or false?\nanswer: False\none\nquestion: true or false?\nanswer:"
    table = {(prompt, " False"): -9.0, (prompt, " True"): -1.0}
    outcome = evaluate_gpt3(TableLM(table), task, 1, seed=0)
    [example] = outcome.examples
    assert (example.choices, example.answer, example.prompt) == (("False", "True"), "True", prompt)
    assert (outcome.metrics, outcome.chance) == ({"acc": 1.0}, 0.4)


@pytest.mark.parametrize(
    ("gpt3", "before"),
    [({}, "-"), ({"target": "y"}, " "), ({"few_shot_target": "y"}, " "), ({"target": "y", "target_delimiter": ""}, "")],
)
def test_what_stands_between_question_and_answer(tmp_path, gpt3, before):
    fields = {"output_type": "loglikelihood", "doc_to_text": "x", "doc_to_target": "y", "target_delimiter": "-"}
    lm = TableLM()
    task = make_task(tmp_path, [{"x": "c", "y": "d"}], [{"x": "a", "y": "b"}], gpt3, **fields)
    evaluate_gpt3(lm, task, 1, seed=0)
    assert lm.calls[0][0][0] == (f"c{before}d\n\na", f"{before}b")


def test_ties_share_the_credit_and_are_counted(tmp_path):
    scores = {"right": -1.0, "same": -1.0, "worse": -2.0}
    docs = [
        {"q": "a", "options": ["right", "same", "worse"], "label": 0},  # a tie of two, the right one among them
        {"q": "b", "options": ["right", "worse", "same"], "label": 1},  # a tie without it
        {"q": "c", "options": ["worse", "right"], "label": 1},
    ]
    lm = TableLM(lambda context, continuation: scores[continuation[1:]] * len(continuation))
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, [], docs), 0, seed=0)
    assert [example.metrics["acc"] for example in outcome.examples] == [0.5, 0.0, 1.0]
    assert outcome.metrics == {"acc": 0.5}
    assert any(note.startswith("2 of 3 questions have choices that tie") for note in outcome.notes)


def test_identical_choices_tie_in_a_real_model(tmp_path, lm):
    docs = [{"q": "the sky", "options": ["was blue", "was blue"], "label": 1}] * 3
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, [], docs), 0, seed=0)
    assert outcome.metrics == {"acc": 0.5}
    assert outcome.notes[0].startswith("3 of 3 questions have choices that tie")


def test_nan_is_no_score(tmp_path):
    lm = TableLM({("q", " a"): -1.0, ("q", " b"): float("nan")})
    task = choice_task(tmp_path, [], [{"q": "q", "options": ["a", "b"], "label": 0}])
    with pytest.raises(TrainingDiverged, match=r"task quiz, question 0: .*' b' is NaN"):
        evaluate_gpt3(lm, task, 0, seed=0)


def test_impossible_answers_lose(tmp_path):
    lm = TableLM(lambda context, continuation: -float("inf") if "a" in continuation else -50.0)
    docs = [{"q": "q", "options": ["a", "b"], "label": 1}]
    for score in ("tokens", "answer_context"):
        outcome = evaluate_gpt3(lm, choice_task(tmp_path / score, [], docs, {"score": score}), 0, seed=0)
        assert outcome.metrics == {"acc": 1.0}


def test_a_wrong_label_names_the_question(tmp_path):
    docs = [{"id": f"q-{17 + wrong}", "q": "q", "options": ["a", "b"], "label": 2 * wrong} for wrong in (0, 1)]
    with pytest.raises(DataError, match=r"task quiz, question q-18: the right answer is 2, but there are 2 choices"):
        evaluate_gpt3(TableLM(), choice_task(tmp_path, [], docs), 0, seed=0)


@pytest.mark.parametrize(
    ("gpt3", "message"),
    [
        ({"scores": "tokens"}, "has no key 'scores'; the keys are shots, score"),
        ({"score": "sum"}, "score: 'sum' is not one of tokens, answer_context, partial"),
        ({"metric": "acc"}, "metric: 'acc' is not one of"),
        ({"shots": "many"}, "shots: 'many'"),
        ({"text": "{{nothing}}"}, "question 0: a template of the task does not fit .*'nothing' is undefined"),
    ],
)
def test_a_wrong_block_names_the_task_and_the_key(tmp_path, gpt3, message):
    task = choice_task(tmp_path, [], [{"q": "q", "options": ["a", "b"], "label": 0}], gpt3)
    with pytest.raises(ConfigError, match=f"task quiz.*{message}"):
        evaluate_gpt3(TableLM(), task, 0, seed=0)


def test_what_the_protocol_cannot_ask(tmp_path):
    task = make_task(
        tmp_path, [], [{"q": "q"}], None, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="q"
    )
    with pytest.raises(ConfigError, match="use protocol=lm-eval"):
        evaluate_gpt3(TableLM(), task, 0, seed=0)
    task = choice_task(tmp_path / "other", [], [{"q": "q", "options": ["a", "b"], "label": 0}])
    with pytest.raises(ConfigError, match=r"no number of shots is published for task quiz"):
        evaluate_gpt3(TableLM(), task, None, seed=0)
