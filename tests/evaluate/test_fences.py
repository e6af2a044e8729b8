"""Code in chat responses, against the fences that markdown-it (CommonMark) finds in the same text."""

import pytest

from megagpt.evaluate.fences import code_of

F = "def f(x):\n    return 1\n"


@pytest.mark.parametrize(
    ("response", "code", "fenced"),
    [
        (f"Sure:\n\n```python\n{F}```\nDone.", F, True),
        (f"```\n{F}```", F, True),
        (f"~~~ py\n{F}~~~~", F, True),
        (f"````\n{F}```\n````\n", f"{F}```\n", True),
        (f"```python\n{F}", f"{F}\n", True),  # cut at the longest length
        (f"First:\n```\nimport os\n```\nthen\n```\n{F}```\n```\ndef f(x): 2\n```", F, True),
        ("```\nx = 1\n```\n```\ny = 2\n```", "x = 1\n", True),
        ("1. So:\n   ```python\n   def f(x):\n       return 1\n   ```\n", F, True),
        (f"```python\r\n{F}```\r\n", F, True),
        ("```python\nx = 'a\x0bb\u2028c'\n```", "x = 'a\x0bb\u2028c'\n", True),
        (F, F, False),
        ("Use ```x``` here.", "Use ```x``` here.", False),
        ("```x``` is it", "```x``` is it", False),
        ("", "", False),
        ("```\n```", "", True),
    ],
)
def test_code_of_a_response(response, code, fenced):
    assert code_of(response, ("f",)) == (code, fenced)


def test_blocks_are_those_of_commonmark():
    markdown_it = pytest.importorskip("markdown_it")
    texts = [
        "a\n```py\nx\n\n  y\n```\nb\n~~~\nz\n```\n~~~\n",
        "`````\n```\n`````\n",
        "```\nopen",
        "``\nno\n``\n",
        "```a`b\nno fence\n",
        "~~~ a`b\nyes\n~~~\n",
        "```\nx\n```not closed\ny\n```\n",
        "  ```\n  x\n    y\n  ```\n",
    ]
    for text in texts:
        fences = [t.content for t in markdown_it.MarkdownIt().parse(text) if t.type == "fence"]
        code, fenced = code_of(text, ("nothing",))
        assert fenced == bool(fences)
        assert not fences or code.rstrip("\n") == fences[0].rstrip("\n")
