"""Answers that the model writes: how it is asked, and how a set of them is judged."""

import pytest
import sacrebleu

from megagpt.errors import ConfigError
from megagpt.evaluate.in_context.gpt3 import evaluate_gpt3
from tests.evaluate.in_context.gpt3_models import TableLM, choice_task, make_task, tiny_lm

DOCS = [{"q": "98 plus 45", "a": "143"}, {"q": "1 plus 1", "a": "2"}, {"q": "2 plus 1", "a": "3"}]


def written_task(folder, gpt3=None, docs=DOCS, **fields):
    about = {"output_type": "generate_until", "doc_to_text": "Q: {{q}}\n\nA:", "doc_to_target": "{{a}}"}
    return make_task(folder, docs, docs, gpt3, **(about | fields))


def test_a_number_must_be_written_exactly(tmp_path):
    answers = {"98": " 143", "1 ": " 2 or 3", "2 ": "3 "}
    lm = TableLM(writes=lambda prompt: answers[prompt.rpartition("Q: ")[2][:2]])
    outcome = evaluate_gpt3(lm, written_task(tmp_path), 0, seed=0)
    assert [example.answer for example in outcome.examples] == ["143", "2 or 3", "3"]
    assert (outcome.metrics, outcome.main_metric) == ({"exact_match": pytest.approx(2 / 3)}, "exact_match")
    assert outcome.chance is None


def test_the_model_searches_with_the_beam_of_t5(tmp_path):
    lm = TableLM()
    task = written_task(
        tmp_path, {"until": "\n", "metric": "f1"}, generation_kwargs={"until": ["."], "max_gen_toks": 7}
    )
    evaluate_gpt3(lm, task, 0, seed=0)
    [requests] = lm.calls
    assert [prompt for prompt, _ in requests] == [f"Q: {doc['q']}\n\nA:" for doc in DOCS]
    beam = {"num_beams": 4, "length_penalty": 0.6, "length_penalty_form": "gnmt", "do_sample": False}
    assert all(options == {**beam, "until": ["\n"], "max_gen_toks": 7} for _, options in requests)


@pytest.mark.parametrize(
    ("gpt3", "fields", "until"),
    [
        ({}, {"generation_kwargs": {"until": [".", "?"]}}, [".", "?"]),
        ({"separator": "\n"}, {"fewshot_delimiter": ""}, ["\n"]),  # lm-eval's own would be the empty delimiter
        ({"until": ["#", "\n"]}, {}, ["#", "\n"]),
    ],
)
def test_where_an_answer_ends(tmp_path, gpt3, fields, until):
    lm = TableLM()
    evaluate_gpt3(lm, written_task(tmp_path, gpt3, **fields), 0, seed=0)
    assert lm.calls[0][0][1]["until"] == until


def test_an_answer_must_end_somewhere(tmp_path):
    with pytest.raises(ConfigError, match=r"task quiz: metadata: gpt3: until: say what ends an answer"):
        evaluate_gpt3(TableLM(), written_task(tmp_path, {"separator": ""}, fewshot_delimiter=""), 0, seed=0)


def test_a_judge_of_the_task_is_not_passed_over_in_silence(tmp_path):
    filters = [{"name": "first", "filter": [{"function": "take_first"}]}]
    with pytest.raises(ConfigError, match=r"task quiz judges generated answers by its own filter_list"):
        evaluate_gpt3(TableLM(), written_task(tmp_path / "none", filter_list=filters), 0, seed=0)
    task = written_task(tmp_path / "one", {"metric": "exact_match"}, filter_list=filters)
    assert evaluate_gpt3(TableLM(), task, 0, seed=0).metrics == {"exact_match": 0.0}
    docs = [{"q": "q", "options": ["a", "b"], "label": 0}]
    outcome = evaluate_gpt3(TableLM(), choice_task(tmp_path / "choice", [], docs, filter_list=filters), 0, seed=0)
    assert "the accuracy compares the choices; the task's own filter_list is not used" in outcome.notes


def test_a_likelihood_task_may_be_written_too(tmp_path):
    """Such as lm-eval's arithmetic, whose number GPT-3 had to write."""
    task = written_task(tmp_path, {"metric": "exact_match"}, output_type="loglikelihood")
    lm = TableLM(writes=lambda prompt: " 143")
    assert evaluate_gpt3(lm, task, 1, seed=0).metrics == {"exact_match": pytest.approx(1 / 3)}


def test_a_prompt_loses_the_spaces_at_its_end(tmp_path):
    lm = TableLM()
    outcome = evaluate_gpt3(lm, written_task(tmp_path, doc_to_text="{{q}} = "), 0, seed=0)
    assert lm.calls[0][0][0] == outcome.examples[0].prompt == "98 plus 45 ="


def test_f1_takes_the_best_of_several_right_answers(tmp_path):
    docs = [{"q": "who", "a": ["the red dog", "a cat"]}, {"q": "what", "a": ["sky"]}]
    lm = TableLM(writes=lambda prompt: "Red cat." if "who" in prompt else "box")
    outcome = evaluate_gpt3(lm, written_task(tmp_path, {"metric": "f1"}, docs, doc_to_target="a"), 0, seed=0)
    # "red cat" and "cat": 1 common word of 2 and 1.
    assert [example.metrics["f1"] for example in outcome.examples] == [pytest.approx(2 / 3), 0.0]
    assert outcome.metrics == {"f1": pytest.approx(1 / 3)}
    assert outcome.examples[0].target == "the red dog | a cat"


def test_bleu_is_of_the_whole_set(tmp_path):
    docs = [{"q": "eins", "a": "the cat sat on the mat"}, {"q": "zwei", "a": "there is a dog in the house"}]
    answers = ["the cat sat on a mat", "there is a dog in a big house"]
    lm = TableLM(writes=lambda prompt: answers["zwei" in prompt.rpartition("Q:")[2]])
    outcome = evaluate_gpt3(lm, written_task(tmp_path, {"metric": "bleu"}, docs), 1, seed=0)
    expected = sacrebleu.corpus_bleu(answers, [[doc["a"] for doc in docs]], tokenize="intl").score
    assert outcome.metrics == {"bleu": pytest.approx(expected)}
    mean = sum(example.metrics["bleu"] for example in outcome.examples) / 2
    assert mean != pytest.approx(expected)
    assert outcome.aggregate == {"bleu": "corpus"}
    assert outcome.notes == ["BLEU by sacrebleu, tokenizer intl"]


def test_a_real_model_writes_what_transformers_would(tmp_path):
    lm = tiny_lm()
    task = written_task(tmp_path, {"max_gen_toks": 6, "until": ["<none>"]})
    outcome = evaluate_gpt3(lm, task, 1, seed=0)
    for example in outcome.examples:
        assert example.shots == 1
        ids = lm.tokenizer(example.prompt, return_tensors="pt")
        out = lm.model.generate(**ids, max_new_tokens=6, num_beams=4, length_penalty=0.6, do_sample=False)
        text = lm.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert example.answer == text.strip()
