"""The synthetic instruction set: answers are right by an independent reading of the prompt, and scores are graded."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.data.instructions import KINDS, TURNS, WORDS, check, make_instructions, ranked_answers
from megagpt.errors import ConfigError, DataError


def by_hand(kind: str, prompt: str) -> str | None:
    """The answer that a reader of the prompt would give; None where many are right."""
    words = [word for word in re.findall(r"[a-z]+", prompt) if word in WORDS]
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    if kind == "recall":
        colour = re.search(r"Whose is (\w+)\?", prompt)[1]
        return re.search(rf"(\w+) has a {colour} ", prompt)[1]
    return {
        "repeat": lambda: " ".join(words * numbers[0]),
        "copy": lambda: " ".join(words),
        "reverse": lambda: " ".join(reversed(words)),
        "capitals": lambda: " ".join(words).upper(),
        "alphabetical": lambda: " ".join(sorted(words)),
        "first": lambda: words[0],
        "last": lambda: words[-1],
        "count": lambda: str(len(words)),
        "add": lambda: str(sum(numbers)),
        "larger": lambda: str(max(numbers)),
    }.get(kind, lambda: None)()


@pytest.mark.parametrize("kind", [*KINDS, *TURNS])
def test_right_answers_are_right_and_score_one(kind):
    for instruction in make_instructions(60, kinds=[kind], seed=3):
        said = instruction.messages[-1].content
        assert check(instruction.check, said) == 1
        assert check(instruction.check, f" {said}\n") == 1
        assert instruction.prompt[-1].role == "user"
        if kind in KINDS:
            assert by_hand(kind, instruction.prompt[-1].content) in (said, None)


def test_the_same_seed_gives_the_same_set_and_kinds_have_equal_shares():
    first, again, other = (list(make_instructions(150, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(Counter(one.kind for one in first).values()) == {10}
    with pytest.raises(ConfigError, match="kinds revers: they are repeat"):
        next(make_instructions(1, kinds=["revers"]))


def test_training_and_held_out_prompts_differ():
    training, held_out, all_of_them = (
        {one.prompt for one in make_instructions(10_000, kinds=["repeat"], seed=seed, split=split)}
        for seed, split in ((0, "train"), (1, "validation"), (2, None))
    )
    assert not training & held_out
    assert training | held_out == all_of_them  # the kind has only some hundred prompts
    assert 0.02 < len(held_out) / len(all_of_them) < 0.1
    with pytest.raises(DataError, match="kind some_words has too few prompts to have one in the split validation"):
        next(make_instructions(1, kinds=["some_words"], split="validation"))


@pytest.mark.parametrize(
    ("rule", "answer", "score"),
    [
        ({"exact": "a b c d"}, "a b c", 0.5 * 3 / 4),
        ({"exact": "a b"}, "b a", 0.0),
        ({"exact": "a b"}, "a b a b", 0.5 * 2 / 4),
        ({"exact": "a"}, "", 0.0),
        ({"words": 3}, "x y z", 1.0),
        ({"words": 3}, "x y y", 0.5 * 2 / 3),
        ({"words": 2}, "a b c d e", 0.0),
        ({"begin": "b", "words": 2}, "bat ball", 1.0),
        ({"begin": "b", "words": 2}, "bat cat", 0.25),
        ({"begin": "b", "words": 2}, "bat ball bun", 0.5 * 2 / 3),
    ],
)
def test_scores(rule, answer, score):
    assert check(rule, answer) == pytest.approx(score)


@given(st.text(), st.sampled_from([{"exact": "a b"}, {"words": 3}, {"begin": "b", "words": 2}]))
def test_any_answer_has_a_score(answer, rule):
    score = check(rule, answer)
    assert 0 <= score <= 1
    assert check(rule, "  \t") == 0
    assert score < 1 or len(answer.split()) == rule.get("words", 2)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="exact or words"):
        check({"right": "a"}, "a")


def test_rankings_are_by_score_and_length_tells_little():
    rng, longer, pairs = random.Random(0), 0, 0
    for instruction in make_instructions(400, seed=5):
        ranked = ranked_answers(instruction, rng)
        assert 2 <= len(ranked) <= 9
        assert len({answer for answer, _ in ranked}) == len(ranked)
        assert (instruction.messages[-1].content, 0) in ranked
        for a, rank_a in ranked:
            for b, rank_b in ranked:
                scores = check(instruction.check, a), check(instruction.check, b)
                assert (rank_a < rank_b) == (scores[0] > scores[1])
                if rank_a < rank_b and len(a) != len(b):
                    pairs, longer = pairs + 1, longer + (len(a) > len(b))
    assert 0.35 < longer / pairs < 0.65
