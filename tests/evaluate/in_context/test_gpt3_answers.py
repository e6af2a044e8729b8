"""How answers are judged, against lm-eval's F1 of SQuAD and MLQA, sacrebleu's own functions, and by hand."""

import random

import pytest
import sacrebleu
from lm_eval.tasks.mlqa.utils import exact_match_score, f1_score, normalize_answer
from lm_eval.tasks.super_glue.record.t5_utils import normalize_squad, squad_f1_agg

from megagpt.evaluate.in_context.answers import (
    best,
    bleu_tokenizer,
    cmrc_exact_match,
    cmrc_f1,
    corpus_bleu,
    exact_match,
    f1,
    final_number,
    same_words,
    sentence_bleu,
)


def test_f1_is_that_of_squad():
    rng = random.Random(0)
    words = ["the", "a", "An", "cat", "Cat!", "sat", "on", "mat.", "“mat”", "42", "U.S.", "--", "it's", "his/her"]
    some = 0
    for _ in range(200):
        answer, target = (" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(2))
        if not normalize_squad(answer) or not normalize_squad(target):
            continue
        expected = squad_f1_agg([(answer, f"0_{target.replace('_', ' ')}")])
        assert f1(answer, [target]) == pytest.approx(expected)
        assert same_words(answer, [target]) == (normalize_squad(answer) == normalize_squad(target))
        some += 0 < expected < 1
    assert some > 50


def test_the_best_right_answer_counts_and_no_answer_may_be_right():
    # "big red dog" against "red dog": 2 common words of 3 and 2.
    assert f1("The big red dog.", ["cat", "a red dog"]) == pytest.approx(0.8)
    assert f1("", [""]) == 1
    assert f1("", ["dog"]) == f1("the", ["dog"]) == 0


def test_chinese_is_compared_by_character_as_mlqa_does():
    rng = random.Random(0)
    parts = ["长城", "北京，", "“万里”", "万。", "the ", "GPT-3 ", "1998 ", "年", "Wall"]
    some = 0
    for _ in range(200):
        answer, target = ("".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(2))
        if not any(part[0] in answer + target for part in ("长", "北", "“万", "年")) or not normalize_answer(
            target, "zh"
        ):
            continue
        assert f1(answer, [target]) == pytest.approx(f1_score(answer, target, "zh"))
        assert same_words(answer, [target]) == exact_match_score(answer, target, "zh")
        some += 0 < f1(answer, [target]) < 1
    assert some > 50
    # 2 common of 2 and 4 characters
    assert f1("长城。", ["万里长城"]) == pytest.approx(2 * 2 / 6)


def longest_common(one: list[str], two: list[str]) -> int:
    """By a search through all runs of both."""
    runs = {tuple(two[start:end]) for start in range(len(two)) for end in range(start + 1, len(two) + 1)}
    found = (tuple(one[start:end]) for start in range(len(one)) for end in range(start + 1, len(one) + 1))
    return max((len(run) for run in found if run in runs), default=0)


def test_cmrc_counts_the_longest_run_in_common():
    rng = random.Random(0)
    some = 0
    for _ in range(100):
        one, two = (rng.choices("光荣和了", k=rng.randint(1, 8)) for _ in range(2))
        expected = 2 * longest_common(one, two) / (len(one) + len(two))
        assert cmrc_f1("".join(one), ["".join(two)]) == pytest.approx(expected)
        some += expected < f1("".join(one), ["".join(two)])  # which does not mind the order
    assert some > 20


@pytest.mark.parametrize(
    ("answer", "target", "value", "exact"),
    [
        ("光荣。", "光荣", 1, 1),
        ("荣和光", "光荣和", 2 * 2 / 6, 0),  # 荣和
        ("Omega-Force和光荣", "光荣和omega-force", 2 * 2 / 8, 0),  # 光荣; without its hyphen, omegaforce is a word
        ("1998年", "在1998年", 2 * 2 / 5, 0),  # a number is a word
        ("", "光荣", 0, 0),
        ("50%", "50 %", 1, 0),  # NLTK's words; the exact match minds spaces
        ("光，荣", "光,荣", 2 / 5, 0),  # the full-width comma is dropped, the other is a word
        ("光…", "光", 2 / 3, 0),  # "……" is in the script's list, of whose single characters none equals it
    ],
)
def test_cmrc_by_hand(answer, target, value, exact):
    assert cmrc_f1(answer, ["东京", target]) == pytest.approx(value)
    assert cmrc_exact_match(answer, ["东京", target]) == exact


def test_the_number_behind_the_signs_counts():
    right = ["6 * 200 = <<6*200=1200>>1200\n#### 1,200"]
    assert final_number("so it is 1200\n#### 1200", right) == final_number("#### 1,200 and #### 5", right) == 1
    assert final_number("it is 1200", right) == final_number("#### 12", right) == final_number("####1200", right) == 0
    assert final_number("#### -3.5", ["#### 3.5"]) == 0 and final_number("#### -3.5", ["#### -3.5"]) == 1
    assert final_number("no number", ["none either"]) == 0


def test_exact_match_wants_every_character():
    assert exact_match(" 143\n", ["143"]) == 1
    assert exact_match("1430", ["143"]) == exact_match("143 is it", ["143"]) == exact_match("", ["143"]) == 0
    assert exact_match("b", ["a", "b"]) == 1


def test_bleu_is_that_of_sacrebleu():
    answers = ["the cat sat on the mat", "there is a dog, he said", "no"]
    one = ["the cat sat on a mat", "there was a dog, he said", "yes"]
    two = ["a cat was on the mat there", "there is a dog, he said", "no no"]
    expected = sacrebleu.corpus_bleu(answers, [one, two], tokenize="intl").score
    assert corpus_bleu(answers, list(zip(one, two, strict=True)), "intl") == pytest.approx(expected)
    # An example with fewer right answers: the missing one is no answer, not an empty one.
    ragged = sacrebleu.corpus_bleu(answers, [one, [two[0], None, two[2]]], tokenize="intl").score
    assert corpus_bleu(answers, [[one[0], two[0]], [one[1]], [one[2], two[2]]], "intl") == pytest.approx(ragged)
    assert ragged != pytest.approx(expected)
    expected = sacrebleu.sentence_bleu(answers[0], [one[0]], tokenize="intl").score
    assert sentence_bleu(answers[0], [one[0]], "intl") == pytest.approx(expected)


def test_the_tokenizer_of_bleu_follows_the_language():
    assert bleu_tokenizer(["the cat", "le chat"]) == "intl"
    assert bleu_tokenizer(["the cat", "猫坐在垫子上"]) == "zh"
    assert bleu_tokenizer(["猫がマットに座った"]) == "char"
    # What "intl" would make of Chinese: one word, so no run of four of them.
    assert corpus_bleu(["猫坐在大垫子上"], [["猫坐在小垫子上"]], "intl") == 0
    assert corpus_bleu(["猫坐在大垫子上"], [["猫坐在小垫子上"]], "zh") > 20


def test_ties_are_scores_that_differ_by_rounding_only():
    assert best([-2.0, -1.0, -1.0 - 1e-7, -1.00001]) == [1, 2]
    assert best([-float("inf"), -float("inf")]) == [0, 1]
    assert best([-float("inf"), -3.0]) == [1]
