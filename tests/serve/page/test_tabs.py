"""The playground, edits and embeddings in a browser."""

import json

import numpy as np
import pytest

from tests.serve.page.server import vector

pytestmark = pytest.mark.slow


def test_gap_is_filled_and_tokens_tell_how_likely_they_were(page, server):
    page.click("#tab-playground")
    server.answer = " ran 🌊 past"
    page.fill("#prompt", "The river the town.")
    for _ in range(len(" the town.")):
        page.press("ArrowLeft")
    assert page.text("#complete") == "Complete"
    assert page.evaluate("document.querySelector('#model').value") == "talker"
    page.click("#mark-gap")
    assert page.evaluate("document.querySelector('#prompt').value") == "The river[insert] the town."
    assert page.evaluate("document.querySelector('#model').value") == "editor"  # the other cannot fill gaps
    assert page.evaluate("document.querySelector('#model optgroup').innerText").split() >= ["talker"]
    page.click("#complete")
    page.wait("document.querySelector('.token')")
    body = server.last("completions")
    assert (body["model"], body["prompt"], body["suffix"]) == ("editor", "The river", " the town.")
    assert page.text("#completions .body") == "The river ran 🌊 past the town."
    assert page.evaluate("[...document.querySelectorAll('.token')].map((token) => token.textContent)") == [
        " ran",
        " 🌊",  # two units of UTF-16, one character
        " past",
    ]
    page.hover(".token:nth-child(2)")
    words = page.text("#tip").split()
    assert words == ["␣🌊", "75.0", "%,", "log-probability", "-0.29", "␣🌊", "75.0", "%", "␣other", "12.5", "%"]
    page.hover("#prompt")
    page.evaluate("document.querySelector('.token').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.text("#tip").startswith("␣past")
    page.click("#completions .plain")
    assert page.evaluate("document.querySelector('#prompt').value") == "The river ran 🌊 past the town."


def test_edit_shows_what_changed(page, server):
    page.click("#tab-edits")
    page.fill("#edit-input", "The old rivver ran passed.")
    server.answer = "The river ran past."
    page.click("#instruction")
    page.type("Fix it.")
    page.press("Enter")
    page.wait("document.querySelector('#edited ins')")
    assert server.last("edits") == {"model": "editor", "input": "The old rivver ran passed.", "instruction": "Fix it."}
    parts = "(tag) => [...document.querySelectorAll(`#edited ${tag}`)].map((part) => part.textContent)"
    assert page.evaluate(f"({parts})('ins')") == ["river", "past"]
    assert [part.strip() for part in page.evaluate(f"({parts})('del')")] == ["old rivver", "passed"]
    assert page.text("#edited .note") == "3 words out, 2 words in."
    page.click("#edited .switch button:nth-child(2)")
    assert page.text("#edited .body:not([hidden])") == "The river ran past."


def test_embeddings_are_compared_and_mapped(page, server):
    page.click("#tab-embeddings")
    texts = ["copy a file", "read a file", "sort numbers", "open a connection", "close it"]
    page.fill("#texts", "\n".join(texts))
    page.click("#compare")
    page.wait("document.querySelector('.matrix')")
    vectors = np.array([vector(text) for text in texts])
    cells = page.evaluate("[...document.querySelectorAll('.matrix td:not(:empty)')].map((cell) => cell.innerText)")
    np.testing.assert_allclose(np.array(cells, float), (vectors @ vectors.T).flat, atol=0.0051)

    circle = "(dot) => [dot.cx.baseVal.value, -dot.cy.baseVal.value]"
    drawn = np.array(page.evaluate(f"[...document.querySelectorAll('.point circle')].map({circle})"))
    drawn -= drawn.mean(0)
    left, values, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    wanted = left[:, :2] * values[:2]
    wanted *= np.sign((wanted * drawn).sum(0))  # a principal component's sign is anybody's choice
    np.testing.assert_allclose(drawn / np.abs(drawn).max(), wanted / np.abs(wanted).max(), atol=1e-3)
    share = round(100 * (values[:2] ** 2).sum() / (values**2).sum())
    assert f"{share} %" in page.text(".map figcaption")

    page.click(".point:nth-child(3)")
    order = [text for text in sorted(texts, key=lambda text: -vector(text) @ vectors[2]) if text != texts[2]]
    near = "[...document.querySelectorAll('.near li span')].map((one) => one.innerText)"
    assert page.evaluate(near) == order


def test_differences_are_the_fewest(page):
    """Compared with the longest common subsequence by the textbook's table."""
    generator = np.random.default_rng(0)
    pairs = [[generator.choice(list("abcd"), generator.integers(0, 12)).tolist() for _ in "12"] for _ in range(200)]
    expression = "import('/page/diff.js').then((diff) => PAIRS.map(([a, b]) => diff.FUNCTION(a, b)))"
    expression = expression.replace("PAIRS", json.dumps(pairs))
    for (before, after), parts in zip(pairs, page.evaluate(expression.replace("FUNCTION", "changes")), strict=True):
        assert [word for kind, words in parts if kind != "in" for word in words] == before
        assert [word for kind, words in parts if kind != "out" for word in words] == after
        changed = sum(len(words) for kind, words in parts if kind != "same")
        assert changed == len(before) + len(after) - 2 * common(before, after)
    expression = expression.replace("(a, b))", "(a.join(' '), b.join(' ')))").replace("FUNCTION", "difference")
    for (before, after), parts in zip(pairs, page.evaluate(expression), strict=True):
        assert "".join(text for kind, text in parts if kind != "in") == " ".join(before)
        assert "".join(text for kind, text in parts if kind != "out") == " ".join(after)


def common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if x == y else max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])
