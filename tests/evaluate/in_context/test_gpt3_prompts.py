"""Which demonstrations stand before a question, how many fit, and where a prompt ends and an answer begins."""

from collections import Counter
from itertools import pairwise

import pytest

from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.demonstrations import draw
from megagpt.evaluate.in_context.gpt3 import evaluate_gpt3
from tests.evaluate.in_context.gpt3_models import TableLM, brute_force, choice_task, make_task, tiny_lm

POOL = [{"q": f"shown {number:02}", "options": ["x", "yy"], "label": number % 2} for number in range(20)]
ASKED = [{"q": f"asked {number:02}", "options": ["x", "yy"], "label": number % 2} for number in range(10)]


def none(place: int) -> bool:
    return False


def shown(outcome) -> dict[str, list[str]]:
    """The demonstrations before each question."""
    blocks = {example.id: example.prompt.split("\n\n") for example in outcome.examples}
    return {name: lines[:-1] for name, lines in blocks.items()}


def test_draws_are_uniform_and_without_repetition():
    firsts, orders = Counter(), Counter()
    for question in range(3000):
        drawn = draw(7, f"question {question}", 5, 2, none)
        assert len(set(drawn)) == 2
        firsts[drawn[0]] += 1
        orders[tuple(drawn)] += 1
    assert max(abs(count - 600) for count in firsts.values()) < 5 * 600**0.5  # five standard deviations and more
    assert len(orders) == 20
    assert max(abs(count - 150) for count in orders.values()) < 5 * 150**0.5


def test_a_draw_is_the_beginning_of_a_longer_one():
    draws = [draw(1, "question", 30, count, none) for count in range(32)]
    for shorter, longer in pairwise(draws):
        assert longer[: len(shorter)] == shorter
    assert sorted(draws[30]) == draws[30].__class__(range(30)) == sorted(draws[31])


def test_what_is_skipped_is_replaced_by_what_would_have_come_next():
    whole = draw(1, "question", 30, 30, none)
    assert draw(1, "question", 30, 6, lambda place: place == whole[2]) == whole[:2] + whole[3:7]


def test_questions_and_seeds_have_draws_of_their_own(tmp_path):
    task = choice_task(tmp_path, POOL, ASKED)
    one, same, other = (shown(evaluate_gpt3(TableLM(), task, 5, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert all(one[name] != other[name] for name in one)
    assert len(set(map(tuple, one.values()))) == len(ASKED)
    known = {f"shown {number:02} {['x', 'yy'][number % 2]}" for number in range(20)}
    assert all(set(lines) <= known and len(set(lines)) == 5 for lines in one.values())


def test_draws_depend_on_nothing_but_seed_and_question(tmp_path):
    whole = shown(evaluate_gpt3(TableLM(), choice_task(tmp_path / "whole", POOL, ASKED), 5, seed=1))
    few = shown(evaluate_gpt3(TableLM(), choice_task(tmp_path / "few", POOL, ASKED), 5, seed=1, limit=3))
    assert few == {name: whole[name] for name in ("0", "1", "2")}
    turned = shown(evaluate_gpt3(TableLM(), choice_task(tmp_path / "turned", POOL, ASKED[::-1]), 5, seed=1))
    assert list(turned.values()) == list(whole.values())[::-1]
    more = shown(evaluate_gpt3(TableLM(), choice_task(tmp_path / "more", POOL, ASKED), 8, seed=1))
    assert {name: lines[:5] for name, lines in more.items()} == whole


def test_a_question_is_never_its_own_demonstration(tmp_path):
    # The evaluated part is also what demonstrations come from, and has one question twice under two names.
    docs = [{**doc, "id": f"name {number}"} for number, doc in enumerate([*ASKED, ASKED[0]])]
    outcome = evaluate_gpt3(TableLM(), choice_task(tmp_path, docs, docs, fewshot_split="test"), 100, seed=1)
    for example, doc in zip(outcome.examples, docs, strict=True):
        own = f"{doc['q']} {example.target}"
        lines = example.prompt.split("\n\n")
        assert own not in lines
        twice = doc["q"] == ASKED[0]["q"]
        assert example.shots == len(lines) - 1 == (9 if twice else 10)
    [note] = outcome.notes
    assert note == (
        "11 of 11 prompts have 9 to 10 shots instead of 100: no more fit the context of 1000 tokens, and there are "
        "only 11 examples to draw from"
    )


def test_the_published_number_of_shots(tmp_path):
    outcome = evaluate_gpt3(TableLM(), choice_task(tmp_path, POOL, ASKED, {"shots": 4}), None, seed=1)
    assert outcome.shots == 4
    assert {example.shots for example in outcome.examples} == {4}


def test_as_many_whole_demonstrations_as_fit(tmp_path):
    pool = [{**doc, "q": doc["q"] + "!" * number} for number, doc in enumerate(POOL)]
    whole = evaluate_gpt3(TableLM(), choice_task(tmp_path, pool, ASKED), 20, seed=1)
    outcome = evaluate_gpt3(TableLM(context=100), choice_task(tmp_path, pool, ASKED), 20, seed=1)
    for example, most in zip(outcome.examples, whole.examples, strict=True):
        lines = most.prompt.split("\n\n")
        # The last scored token is no input: 101 tokens fit.
        counts = [count for count in range(21) if len("\n\n".join([*lines[:count], lines[-1]])) + len(" yy") <= 101]
        assert example.shots == max(counts)
        assert example.prompt == "\n\n".join([*lines[: max(counts)], lines[-1]])
    counts = sorted(example.shots for example in outcome.examples)
    assert outcome.notes == [
        f"10 of 10 prompts have {counts[0]} to {counts[-1]} shots instead of 20: no more fit the context of 100 "
        "tokens, and there are only 20 examples to draw from"
    ]
    assert counts[0] < counts[-1]


def test_the_model_gets_what_the_prompt_says(tmp_path):
    """transformers' GPT-2 has a context of 64 tokens and would raise for more; its scores are those of the prompt."""
    pool = [{"q": f"the box {'was big ' * n}?", "options": ["it is", "no"], "label": n % 2} for n in range(8)]
    lm = tiny_lm(context=64)
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, pool, ASKED[:3]), 8, seed=1)
    for example in outcome.examples:
        assert 0 < example.shots < 8
        for option, score in zip(example.choices, example.scores, strict=True):
            total, tokens, _ = brute_force(lm, example.prompt, " " + option)
            assert score == pytest.approx(total / tokens, abs=1e-4)


def test_a_written_answer_needs_room(tmp_path):
    fields = {"doc_to_text": "q", "doc_to_target": "label"}
    task = make_task(tmp_path, POOL, ASKED, {"max_gen_toks": 20}, output_type="generate_until", **fields)
    lm = TableLM(context=50)
    outcome = evaluate_gpt3(lm, task, 20, seed=1)
    assert {example.shots for example in outcome.examples} == {1}  # 8 + 2 characters, twice with 2 more are 32 > 30
    assert all(len(prompt) <= 30 for prompt, _ in lm.calls[0])


def test_a_question_that_does_not_fit_alone(tmp_path):
    docs = [{"q": "q" * length, "options": ["x", "yy"], "label": 0} for length in (10, 60, 70)]
    task = choice_task(tmp_path, POOL, docs)
    outcome = evaluate_gpt3(TableLM(context=50), task, 3, seed=1)
    assert [example.id for example in outcome.examples] == ["0"]
    assert outcome.notes[0] == "2 of 3 questions are left out: they do not fit the context of 50 tokens"
    with pytest.raises(DataError, match=r"question 0: 13 tokens even .* 6 fit .* 5; no question of the task fits"):
        evaluate_gpt3(TableLM(context=5), task, 3, seed=1)


def test_without_demonstrations_the_frame_is_plain_again(tmp_path):
    gpt3 = {"few_shot_text": "{{q}} ____. ->"}
    docs = [{"q": "a" * 30, "w": "b"}]
    fields = {"output_type": "loglikelihood", "doc_to_text": "q", "doc_to_target": "w"}
    [example] = evaluate_gpt3(TableLM(context=50), make_task(tmp_path, docs, docs, gpt3, **fields), 0, seed=1).examples
    assert example.prompt == "a" * 30
    pool = [{"q": "c" * 30, "w": "d"}]
    [example] = evaluate_gpt3(TableLM(context=50), make_task(tmp_path, pool, docs, gpt3, **fields), 1, seed=1).examples
    assert (example.prompt, example.shots) == ("a" * 30, 0)


def test_nothing_to_draw_from(tmp_path):
    with pytest.raises(ConfigError, match=r"task quiz has no examples to draw demonstrations from"):
        evaluate_gpt3(TableLM(), choice_task(tmp_path, [], ASKED), 1, seed=0)


def test_a_space_at_the_end_of_a_prompt_begins_the_answer(tmp_path):
    table = {("q:", "  a"): -1.0, ("q:", "  b"): -2.0}
    docs = [{"q": "q: ", "options": ["a", "b"], "label": 0}]
    lm = TableLM(table)
    assert evaluate_gpt3(lm, choice_task(tmp_path, [], docs), 0, seed=0).metrics == {"acc": 1.0}
    assert not evaluate_gpt3(lm, choice_task(tmp_path, [], docs), 0, seed=0).notes


def test_an_empty_prompt_is_the_prefix_token(tmp_path):
    docs = [{"q": "", "options": ["good", "bad"], "label": 0}]
    lm = TableLM({("", "good"): -8.0, ("", "bad"): -9.0})
    assert evaluate_gpt3(lm, choice_task(tmp_path, [], docs, target_delimiter=""), 0, seed=0).metrics == {"acc": 1.0}
    assert [before for _, before, _ in lm.calls[0]] == [[lm.prefix_token_id]] * 2


def test_prompt_and_answer_that_the_tokenizer_would_join_are_encoded_apart(tmp_path):
    docs = [{"q": "ab", "options": ["cd", "e"], "label": 0}, {"q": "xy", "options": ["cd", "e"], "label": 0}]
    lm = TableLM(words=("ab", "abc", "bc", "cd"))  # "abcd" is abc + d, which does not begin with ab
    outcome = evaluate_gpt3(lm, choice_task(tmp_path, [], docs, target_delimiter=""), 0, seed=0)
    tokens = {(before, after): (ids, more) for (before, after), ids, more in lm.calls[0]}
    names = list(lm.ids)
    assert [[names[token] for token in side] for side in tokens["ab", "cd"]] == [["ab"], ["cd"]]
    assert [[names[token] for token in side] for side in tokens["xy", "cd"]] == [["x", "y"], ["cd"]]
    assert outcome.notes[-1] == (
        "1 of 2 questions have answers whose first token would merge with the prompt: prompt and answer are encoded "
        "separately"
    )
    # lm-eval would score another text: what is left of the whole after as many tokens as the context has.
    assert lm._encode_pair("ab", "cd")[1] == [lm.ids["d"]]


def test_an_answer_that_merges_as_a_whole_is_still_scored(tmp_path):
    lm = TableLM({("a", "b"): -1.0, ("a", "c"): -2.0}, words=("ab",))
    docs = [{"q": "a", "options": ["b", "c"], "label": 0}]
    assert evaluate_gpt3(lm, choice_task(tmp_path, [], docs, target_delimiter=""), 0, seed=0).metrics == {"acc": 1.0}


def test_an_answer_without_tokens_is_an_error(tmp_path):
    docs = [{"q": "a", "options": ["b", "c"], "label": 0}, {"q": "a", "options": ["", "c"], "label": 0}]
    with pytest.raises(DataError, match=r"task quiz, question 1: the answer '' has no tokens"):
        evaluate_gpt3(TableLM(), choice_task(tmp_path, [], docs, target_delimiter=""), 0, seed=0)
