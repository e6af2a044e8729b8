"""RefinedWeb's rules about lines, beside a plain reading of each rule, line by line."""

import random
import re
from collections import Counter

import pytest
from text_peers import junk

from megagpt.data.corpus.text.analysis import Analysis
from megagpt.data.corpus.text.limits import Lines
from megagpt.data.corpus.text.rules.lines import lines

TEXT = "\n".join(["A line of text that stays because it is long and says something about the world."] * 20)


def edit(text: str, **limits):
    return lines(Analysis(text), Lines(**{"max_removed": None} | limits))


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("THIS IS A HEADING of words", "uppercase"),
        ("ÄÖÜ ÄÖÜ ÄÖÜ aaa", "uppercase"),
        ("This Is A Title", None),
        ("AB cd", None),  # half the letters, less than half of the characters
        ("ABCde", "uppercase"),
        ("1234567", "number"),
        (" 12 ", "number"),
        ("12,5", "few words"),
        ("12 34", None),
        ("3 likes", "counter"),
        ("• 1,234 Comments", "counter"),
        ("2.5k followers", "counter"),
        ("1 share!", "counter"),
        ("3 likes and a comment", None),
        ("likes 3", None),
        ("word", "few words"),
        ("two words", None),
        ("中文没有空格", None),
        ("中", "few words"),
        ("", None),
        ("   ", None),
    ],
)
def test_lines_that_go(line, rule):
    found = edit(f"{TEXT}\n{line}\n{TEXT}")
    assert found.counts == (Counter({rule: 1}) if rule else {})
    assert found.text == (f"{TEXT}\n{TEXT}" if rule else f"{TEXT}\n{line}\n{TEXT}")
    assert found.drop is None


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("Sign-in to see more of it", "to see more of it"),
        ("A story that goes on Read more...", "A story that goes on"),
        ("read More...", None),
        ("There are 3 items in cart now", "There are 3 now"),
        ("You should sign-in here", "You should sign-in here"),
        ("Read more... of the story", "Read more... of the story"),
        ("one two three four five six seven eight nine ten items in cart", None),
    ],
)
def test_phrases(line, left):
    found = edit(f"{TEXT}\n{line}\n{TEXT}")
    left = line if left is None and "ten" in line else left
    assert found.text == "\n".join([TEXT, *([left] if left else []), TEXT])
    assert found.counts == ({} if left == line else {"phrase": 1})
    assert edit(f"{TEXT}\n{line}", phrases=False).text == f"{TEXT}\n{line}"


def test_line_breaks():
    assert (
        edit("One line here.\n\n\n\n\nAnd another.\n\nAnd more.").text == "One line here.\n\nAnd another.\n\nAnd more."
    )
    assert edit("One line here.\n\n\nAnother one.", max_newlines=None).text == "One line here.\n\n\nAnother one."


def test_a_page_that_loses_much_is_dropped():
    """20 lines of 16 words; four percent and six percent more."""
    words = len(TEXT.split())
    heading = "WORD " * (words // 25) + "W"
    assert lines(Analysis(f"{TEXT}\n{heading}"), Lines()).drop is None
    heading = "WORD " * (words // 16) + "W"
    drop = lines(Analysis(f"{TEXT}\n{heading}"), Lines()).drop
    assert drop.rule == "words removed" and "over 0.05" in drop.reason
    assert lines(Analysis("ALL CAPITALS HERE\n12"), Lines(max_removed=None)).drop.rule == "empty"


def plain(text: str) -> tuple[str, Counter]:
    kept, counts = [], Counter()
    for line in re.sub("\n\n\n+", "\n\n", text).split("\n"):
        words = len(Analysis(line).words)
        if not line.strip():
            kept.append(line)
        elif sum(character.isupper() for character in line) / len(line) > 0.5:
            counts["uppercase"] += 1
        elif all(character.isdigit() for character in line.strip()):
            counts["number"] += 1
        elif words < 2:
            counts["few words"] += 1
        else:
            kept.append(line)
    return "\n".join(kept), counts


def test_junk():
    dice = random.Random(1)
    total = Counter()
    for text in junk(1500, 7):
        text = "\n".join(
            dice.choice([str.upper, str.title, str, str, str])(line)
            for line in text.replace("Read more...", "").split("\n")
        )
        expected, counts = plain(text)
        found = edit(text, counters=False)
        assert found.counts == counts, repr(text)
        if found.drop:
            assert not expected.strip()
        else:
            assert found.text == (expected.strip() if counts else expected)
        total += counts
    assert min(total["uppercase"], total["number"] + total["few words"]) > 100
