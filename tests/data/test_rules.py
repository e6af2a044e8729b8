"""Documents of rules: what is held out is in no document, and only the examples tell the answer to a question."""

from collections import Counter, defaultdict
from itertools import chain, pairwise, product

import pytest

from megagpt.data.rules import HELD_OUT_KINDS, KINDS, documents, questions
from megagpt.errors import ConfigError

ALL = [*KINDS, *HELD_OUT_KINDS]
LENGTHS = {"mapping": 1, "category": 1, "majority": 1, "pattern": 3, "remainder": 1, "words": 1}
"""Of the inputs, by which lines are taken apart here."""


@pytest.fixture(scope="module")
def trained() -> dict[str, list[list[tuple[str, str]]]]:
    """Documents by kind, as lists of (input, answer)."""
    found = defaultdict(list)
    for document in documents(12_000, seed=1):
        length = LENGTHS[document["kind"]]
        found[document["kind"]].append([(line[:length], line[length:]) for line in document["text"].splitlines()])
    return found


@pytest.fixture(scope="module")
def asked() -> dict[str, list[dict]]:
    """Questions by kind."""
    found = defaultdict(list)
    for question in questions(400 * len(ALL), seed=2):
        found[question["kind"]].append(question)
    return found


def pairs_of(question: dict) -> list[tuple[str, str]]:
    return [(one["input"], one["answer"]) for one in [*question["examples"], question]]


def test_documents_follow_from_their_seed_and_take_the_kinds_in_turn():
    made = list(documents(60, seed=3))
    assert made == list(documents(60, seed=3)) != list(documents(60, seed=4))
    assert [document["kind"] for document in made] == list(KINDS) * 10
    assert [one["kind"] for one in documents(4, 3, ["pattern", "words"])] == ["pattern", "words"] * 2
    assert len({document["text"] for document in made}) == 60
    assert {document["text"].count("\n") for document in made} == {16}


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_has_one_rule_and_a_shuffled_one_the_same_examples_of_many(kind):
    plain, shuffled = (list(documents(300, 5, [kind], shuffled=flag)) for flag in (False, True))
    lines = [[document["text"].splitlines() for document in made] for made in (plain, shuffled)]
    assert Counter(chain(*lines[0])) == Counter(chain(*lines[1]))
    assert [len(document) for document in lines[0]] == [len(document) for document in lines[1]]
    few = [sum(contradicts(kind, document) for document in made) for made in lines]
    assert few[0] == 0 and few[1] > 250


def contradicts(kind: str, lines: list[str]) -> bool:
    """Whether no rule of the kind makes these examples."""
    pairs = [(line[: LENGTHS[kind]], line[LENGTHS[kind] :]) for line in lines]
    if kind == "majority":
        return len({answer for _, answer in pairs}) > 2
    if kind == "category":
        return len({answer for _, answer in pairs}) > 2 or any(
            (first.isdigit(), first.isalpha()) == (second.isdigit(), second.isalpha()) and one != other
            for (first, one), (second, other) in product(pairs, pairs)
        )
    if kind == "pattern":
        orders = product(range(3), repeat=3)
        return not any(all("".join(text[at] for at in order) == answer for text, answer in pairs) for order in orders)
    if kind == "remainder":
        return not remainders(pairs)
    return any(first == second and one != other for (first, one), (second, other) in product(pairs, pairs))


def remainders(pairs: list[tuple[str, str]]) -> set[int]:
    """Moduli that fit."""
    return {
        modulus
        for modulus in range(2, 20)
        for shift in range(modulus)
        if all((int(digit) + shift) % modulus == int(answer) for digit, answer in pairs)
    }


def test_what_is_held_out_is_in_no_document(trained, asked):
    for kind in ("mapping", "words"):
        known = {pair for document in trained[kind] for pair in document}
        assert not known & {pair for question in asked[kind] for pair in pairs_of(question)}
    labels = {frozenset(answer for _, answer in document) for document in trained["category"] + trained["majority"]}
    assert not labels & {frozenset(one["choices"]) for kind in ("category", "majority") for one in asked[kind]}
    orders = {order_of(document) for document in trained["pattern"]}
    held_out = {order_of(pairs_of(question)) for question in asked["pattern"]}
    assert len(orders) == 21 and len(held_out) == 6 and not orders & held_out
    moduli = {len(question["choices"]) for question in asked["remainder"]}
    assert moduli == {5, 8}
    assert all(remainders(document) - moduli for document in trained["remainder"])
    assert all(len(one["choices"]) in remainders(pairs_of(one)) for one in asked["remainder"])


def order_of(pairs: list[tuple[str, str]]) -> tuple[int, ...]:
    (order,) = {tuple(text.index(letter) for letter in answer) for text, answer in pairs}
    return order


@pytest.mark.parametrize("kind", ALL)
def test_without_examples_what_was_trained_on_is_of_no_use(kind, trained, asked):
    """The most frequent answer to the input in training, of those that the question offers, is right by chance."""
    seen = Counter()
    for document in [one for documents_of_kind in trained.values() for one in documents_of_kind]:
        for text, answer in document:
            seen[text, answer] += 1
            seen[answer] += 1
    right = chance = 0.0
    for number, question in enumerate(asked[kind]):
        choices = question["choices"]
        assert question["answer"] in choices and len(set(choices)) == len(choices) and list(choices) == sorted(choices)
        best = max(
            choices, key=lambda one: (seen[question["input"], one], seen[one], -(choices.index(one) - number) % 7)
        )
        right += best == question["answer"]
        chance += 1 / len(choices)
    count = len(asked[kind])
    assert abs(right - chance) / count < 4 * (chance / count * (1 - chance / count) / count) ** 0.5


@pytest.mark.parametrize("kind", [*HELD_OUT_KINDS, "words", "mapping"])
def test_an_example_with_the_same_input_has_the_answer(kind, asked):
    repeated = 0
    for question in asked[kind]:
        table = dict(pairs_of(question))
        assert all(table[text] == answer for text, answer in pairs_of(question))
        repeated += any(one["input"] == question["input"] for one in question["examples"][:8])
    assert 0.8 < repeated / len(asked[kind]) < 0.97  # 1 - (3/4)^8 = 0.9


def test_the_majority_is_the_answer(asked):
    agree = [sum(one["answer"] == question["answer"] for one in question["examples"]) for question in asked["majority"]]
    assert 0.77 < sum(agree) / (15 * len(agree)) < 0.83


def test_questions_stay_the_same_when_more_or_others_are_asked():
    few, more = (list(questions(count, 7, ["cycle", "words"])) for count in (10, 40))
    assert more[:10] == few
    assert [one for one in few if one["kind"] == "words"] == list(questions(5, 7, ["words"]))
    assert all(first["id"] != second["id"] for first, second in pairwise(few))
    assert few != list(questions(10, 8, ["cycle", "words"]))


def test_an_unknown_kind_or_one_that_is_only_asked_is_refused():
    with pytest.raises(ConfigError, match="no rules of kind cycle here: take words"):
        list(documents(1, 0, ["cycle"]))
    with pytest.raises(ConfigError, match="of kind wrods"):
        list(questions(1, 0, ["wrods"]))
