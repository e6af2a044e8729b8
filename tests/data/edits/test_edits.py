"""The generator of edits: every kind does what its instruction says, judged by other means than it was made with."""

import ast
import itertools
import re
import sys
from collections import Counter

import pytest

from megagpt.data.edits.bugs import broken_functions, mutants
from megagpt.data.edits.functions import FUNCTIONS, source_of
from megagpt.data.edits.make import KINDS, make_edits
from megagpt.data.edits.text import passages
from megagpt.errors import ConfigError, DataError

PROSE = [
    "The quick brown fox jumps over the lazy dog. It was seen near the old river.\n\nNobody knows where the fox went.",
    "Rivers carry water to the sea. Some of them are long; others are short.",
]
CODE = [
    '''
import os


class Box:
    """A box of things. It has room for many."""

    def add(self, thing, amount):
        """Put things in."""
        # count them first
        total = self.count + amount  # never negative
        os.path.exists(thing)
        re.compile(thing)
        json.loads(thing)
        return total


def double(number):
    """Twice a number."""
    result = number * 2
    return result
'''
]


def edits(*kinds: str, count: int = 40, documents=None, **options) -> list:
    return list(make_edits(documents or [*PROSE, *CODE], count, kinds=kinds, **options))


def test_the_same_seed_gives_the_same_edits_and_none_twice():
    kinds = ("spelling", "replace_word", "sort_lines", "fix_bug")
    first, again, other = (edits(*kinds, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({(edit.instruction, edit.input) for edit in first}) == len(first)
    assert Counter(edit.kind for edit in first) == dict.fromkeys(kinds, 10)


def test_splits_have_no_text_in_common():
    words = ["river", "boat", "harbour", "captain", "sailor", "anchor", "island"]
    sentences = [f"The {a} saw the {b}." for a in words for b in words]
    splits = {}
    for split in ("train", "validation"):
        made = edits("uppercase", "fix_bug", count=4, documents=["\n\n".join(sentences)], max_chars=300, split=split)
        splits[split] = {edit.input for edit in made if edit.kind == "uppercase"}
    assert not splits["train"] & splits["validation"]
    everything = edits("uppercase", count=30, documents=["\n\n".join(sentences)])
    assert {edit.input for edit in everything} - splits["train"] - splits["validation"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_its_input_and_keeps_to_the_length(kind):
    for edit in edits(kind, count=3, max_chars=300):
        assert edit.kind == kind
        assert edit.input != edit.output
        assert len(edit.input) <= 330


def test_edits_of_words():
    for edit in edits("uppercase", "lowercase", count=8):
        assert edit.output == (edit.input.upper() if edit.kind == "uppercase" else edit.input.lower())
    for edit in edits("replace_word"):
        (old,) = set(edit.input.split()) - set(edit.output.split()) or {""}
        assert re.sub(r"\W", "", old) in edit.instruction
        assert len(edit.input.split()) == len(edit.output.split())
    for edit in edits("remove_word", count=10):
        gone = Counter(edit.input.split()) - Counter(edit.output.split())
        assert len(gone) == 1
        assert next(iter(gone)) in edit.instruction
    for edit in edits("spelling"):
        assert edit.output in " ".join(" ".join(PROSE).split()) or edit.output in CODE[0]
        assert len(edit.input.split()) == len(edit.output.split())
    for edit in edits("single_spaces", count=10):
        assert edit.output == " ".join(edit.input.split())


def test_edits_of_lists():
    for edit in edits("sort_lines", "reverse_lines", "number_lines"):
        given, wanted = edit.input.split("\n"), edit.output.split("\n")
        if edit.kind == "sort_lines":
            assert all(a <= b for a, b in itertools.pairwise(wanted))
            assert Counter(given) == Counter(wanted)
        elif edit.kind == "reverse_lines":
            assert wanted == given[::-1]
        else:
            assert [re.sub(r"^\d+\. ", "", line) for line in wanted] == given
            assert [int(line.split(".")[0]) for line in wanted] == list(range(1, len(given) + 1))


def test_edits_of_code_change_what_they_say_and_nothing_else():
    for edit in edits("rename", "remove_comments", "add_comment", "remove_docstring", count=8, documents=CODE):
        before, after = ast.parse(edit.input), ast.parse(edit.output)
        if edit.kind == "rename":
            names = Counter(re.findall(r"\w+", edit.input)), Counter(re.findall(r"\w+", edit.output))
            (gone,), (new,) = (set(names[0]) - set(names[1]), set(names[1]) - set(names[0]))
            assert names[0][gone] == names[1][new]
            assert {gone, new} <= set(re.findall(r"\w+", edit.instruction))
        elif edit.kind == "remove_docstring":
            function = before.body[0]
            function.body = function.body[1:]
            assert ast.dump(before) == ast.dump(after)
        else:
            assert ast.dump(before) == ast.dump(after)
            assert ("#" in edit.output) == (edit.kind == "add_comment")
    for edit in edits("sort_imports", count=1, documents=CODE):
        assert edit.output == "import json\nimport os\nimport re"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_function_has_a_mistake_that_its_tests_find(function):
    found = [item for item in broken_functions() if item.name == function.__name__]
    assert found
    space: dict = {}
    exec(found[0].right, space)
    exec(found[0].tests, space)  # the right one passes
    assert {item.wrong for item in found} <= {text for _, text in mutants(source_of(function))}


def passes(program: str, tests: str) -> bool:
    """Whether tests pass; a program with a mistake may never end, so it may run so many lines."""
    lines = itertools.count()

    def trace(*_):
        if next(lines) > 20_000:
            raise TimeoutError
        return trace

    space: dict = {}
    exec(program, space)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        exec(tests, space)
    except Exception:
        return False
    finally:
        sys.settrace(before)
    return True


def test_repaired_functions_pass_and_broken_ones_do_not():
    for edit in edits("fix_bug", count=60, max_chars=400):
        assert edit.function in edit.tests
        assert passes(edit.output, edit.tests)
        assert not passes(edit.input, edit.tests), edit.input


def test_a_mutant_differs_in_one_place():
    source = "def f(a, b):\n    return a < b and a + 1 != min(a, b)"
    kinds = Counter(kind for kind, _ in mutants(source))
    assert kinds == {"comparison": 3, "operator": 1, "constant": 2, "logic": 1, "return": 1, "order": 1}
    for text in (text for kind, text in mutants(source) if kind != "return"):
        assert len(set(text.split()) ^ set(ast.unparse(ast.parse(source)).split())) <= 5


def test_passages_are_whole_sentences():
    found = passages(PROSE[0], 60)
    assert found == [
        "The quick brown fox jumps over the lazy dog.",
        "It was seen near the old river.",
        "Nobody knows where the fox went.",
    ]
    assert passages("Short. " * 3, 5) == []


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match=r"kinds speling of edits: they are spelling"):
        edits("speling")
    with pytest.raises(DataError, match=r"no further edit of kind remove_docstring, with 0 texts of at most 400"):
        edits("remove_docstring", documents=PROSE)
    with pytest.raises(DataError, match=r"no further edit of kind uppercase"):
        edits("uppercase", count=500)
