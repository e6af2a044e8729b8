"""What holds for the whole page: hostile text, missing models, the keyboard, small and dark screens."""

import pytest

from tests.serve.page.browser import Page
from tests.serve.page.talk import say, turns

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror="hurt=1"></script><script>hurt=1</script><style>*{display:none}</style>'


def test_hostile_text_stays_text(page, server):
    server.answer = HOSTILE
    server.models = [{**model, "id": f"{model['id']}{HOSTILE}"} for model in server.models]
    page.reload()
    say(page, HOSTILE)
    assert turns(page) == [HOSTILE, HOSTILE]
    server.answer = f"```{HOSTILE}\n{HOSTILE}\n```"
    say(page, "code")
    server.refusals = [(500, {"message": HOSTILE, "code": HOSTILE}, {})] * 4
    page.type("fail")
    page.press("Enter")
    assert HOSTILE in page.text(".error")
    server.refusals = []
    server.answer = HOSTILE
    page.click("#tab-playground")
    page.fill("#prompt", HOSTILE)
    page.click("#complete")
    page.wait("document.querySelector('.token')")
    page.hover(".token")
    page.click("#tab-edits")
    page.fill("#instruction", HOSTILE)
    page.click("#edit")
    page.wait("document.querySelector('#edited ins')")
    page.click("#tab-embeddings")
    page.fill("#texts", f"{HOSTILE}\nother")
    page.click("#compare")
    page.wait("document.querySelector('.matrix')")
    page.reload()
    assert page.evaluate("document.querySelectorAll('img, body script, body style, iframe').length") == 0
    assert page.evaluate("typeof hurt") == "undefined"
    assert page.evaluate("document.querySelector('#model').checkVisibility()")


def test_missing_abilities_are_named(page, server):
    server.models = [model for model in server.models if model["id"] == "embedder"]
    page.reload()
    assert "No model here can chat." in page.text("#trouble")
    assert "embedder" in page.text("#trouble")
    page.click("#tab-embeddings")
    assert page.text("#trouble") == ""
    page.click("#tab-edits")
    assert "No model here can edit." in page.text("#trouble")
    server.reset()
    page.click("#trouble button")
    page.wait("document.querySelector('#model').value === 'editor'")
    assert page.text("#trouble") == ""


def test_everything_is_reached_by_keyboard(page, server):
    say(page, "hello")
    page.click("h1")  # from the start of the page
    reached = []
    for _ in range(15):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel || 'conversation'"))
    assert reached[:6] == ["tab-chat", "model", "open-settings", "new-conversation", "conversation", "Delete hello"]
    assert reached[6:9] == ["log", "Copy", "Edit"]
    assert reached[-2:] == ["message", "send"]
    page.evaluate("document.querySelector('#tab-chat').focus()")
    for name in ("playground", "edits", "embeddings"):
        page.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{name}"
        assert page.evaluate(f"document.querySelector('#{name}').checkVisibility()")
        named(page)
    page.press("ArrowRight")
    named(page)
    page.click("#open-settings")
    named(page)


def named(page: Page) -> None:
    """Everything that can be used has a name for screen readers."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    used = {
        "button",
        "textbox",
        "combobox",
        "slider",
        "spinbutton",
        "tab",
        "tabpanel",
        "dialog",
        "region",
        "navigation",
    }
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in used]
    assert len(shown) > 8
    assert not [node["role"]["value"] for node in shown if not node["name"]["value"]]


def test_phone_and_dark_mode(page, server):
    wide = "unbroken" * 40
    page.resize(360, 640)
    server.answer = f"{wide}\n```\n{wide}\n```"
    say(page, wide)
    fits = "document.documentElement.scrollWidth <= 360 && document.querySelector('#turns').scrollWidth <= 360"
    assert page.evaluate(fits)
    page.click("#open-conversations")
    page.click("#new-conversation")
    page.press("Escape")
    assert not page.evaluate("document.querySelector('#conversations').checkVisibility()")
    page.click("#open-settings")
    page.click("#close-settings")
    for name, field, button, done in (
        ("playground", "#prompt", "#complete", ".token"),
        ("edits", "#edit-input", "#edit", "#edited ins"),
        ("embeddings", "#texts", "#compare", ".matrix"),
    ):
        page.click(f"#tab-{name}")
        page.fill(field, f"{wide}\nother")
        if name == "edits":
            page.fill("#instruction", wide)
        page.click(button)
        page.wait(f"document.querySelector('{done}')")
        assert page.evaluate(
            f"document.documentElement.scrollWidth <= 360 && document.querySelector('#{name}').scrollWidth <= 360"
        )
    paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    page.darken(False)
    assert min(page.evaluate(paper)) > 200
    page.darken(True)
    assert max(page.evaluate(paper)) < 50
