"""docs/troubleshooting.md has every exit code, and texts that the code really has."""

import re
from functools import cache

from megagpt import errors
from tests.test_docs_figures import DOCS, table
from tests.test_policies import sources, texts, tree

PAGE = "troubleshooting"


@cache
def messages() -> list[str]:
    """All texts of the package, with ... for their values and one space between words."""
    return [" ".join(text.split()) for path in sources("megagpt") for text in texts(tree(path), value="...")]


def codes() -> set[int]:
    """Every exit code that a process of megagpt ends with by itself."""
    raised = {error.exit_code for error in errors.MegaGPTError.__subclasses__()}
    return raised | {0, errors.MegaGPTError.exit_code, errors.HUNG, errors.STOPPED_BY_SIGNAL}


def test_every_exit_code_is_there():
    found = [row[0] for row in table(PAGE, "exit code")]
    assert found.pop() == "128 + N"
    assert sorted(map(int, found)) == sorted(codes())
    assert {int(row[0]) for row in table("training", "exit code")} == codes()


def test_every_text_is_a_message():
    rows = table(PAGE, "text", "cause")
    assert len(rows) >= 20
    for text, *_ in rows:
        quoted = re.fullmatch(r"`([^`]+)`", text)
        assert quoted, f"{text}: the text of a message in backticks"
        assert any(quoted[1] in message for message in messages()), f"no message has: {quoted[1]}"


def test_every_code_of_an_error_has_its_text():
    """The rows that send the reader further down do so to a section that is there."""
    page = (DOCS / f"{PAGE}.md").read_text(encoding="utf-8")
    sections = {head.lower().replace(" ", "-") for head in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= sections
