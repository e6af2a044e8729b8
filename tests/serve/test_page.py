"""The page at `/` in a browser: real clicks and keys, against a small server of the API."""

import json

import numpy as np
import pytest

from tests.serve.browser import CHROMIUM, Browser, Page
from tests.serve.page_server import PageServer, vector

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]
HOSTILE = '<img src=x onerror="hurt=1"></script><script>hurt=1</script><style>*{display:none}</style>'
READY = "document.querySelector('#send').ariaLabel === 'Send'"
LAST = ".turn:last-child"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def running_server():
    server = PageServer()
    yield server
    server.close()


@pytest.fixture
def server(running_server):
    running_server.reset()
    return running_server


@pytest.fixture
def page(browser, server):
    """The page just opened. At the end its console is empty, and it has asked nobody but its own server."""
    page = Page(browser, server.url)
    page.resize(1280, 800)
    yield page
    assert not page.complaints()
    assert all(url.startswith((server.url, "data:")) for url in page.requested())
    page.close()


def say(page: Page, text: str) -> None:
    """Writes a message, sends it and waits for the answer's end."""
    page.fill("#message", text)
    page.press("Enter")
    page.wait(f"{READY} && document.querySelector('{LAST} .body').innerText && {asked(text)}")


def asked(text: str) -> str:
    """An expression: whether the last message that was sent is this."""
    return f"[...document.querySelectorAll('.turn.user .body')].at(-1)?.innerText === {json.dumps(text)}"


def turns(page: Page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.turn .body')].map((body) => body.innerText)")


def test_answer_streams_and_stops(page, server):
    server.answer, server.endless = "The river", True
    page.click("#message")
    page.type("Where is it?\nTell me.")  # Shift+Enter between them
    page.press("Enter")
    page.wait(f"document.querySelector('{LAST} .body').innerText.startsWith('The river more more')")
    assert page.evaluate("document.querySelector('#send').ariaLabel") == "Stop"
    assert page.evaluate(f"document.querySelector('{LAST}').ariaBusy") == "true"
    page.press("Escape")
    page.wait(READY)
    assert server.gone.wait(5)  # the request was given up, not only its display
    assert turns(page)[0] == "Where is it?\nTell me."
    assert page.text(f"{LAST} .note") == "Stopped."
    stopped = turns(page)[1]
    assert page.evaluate("document.querySelector('#status').textContent").startswith("The river more more")
    assert server.last("chat/completions")["messages"] == [{"role": "user", "content": "Where is it?\nTell me."}]

    server.answer, server.endless = "At the *old* bridge.\n```python\nx = 1 < 2\n```\nIt `is`.", False
    page.click(f"{LAST} [aria-label='Answer again']")
    page.wait(f"{READY} && document.querySelector('{LAST} pre')")
    assert len(server.last("chat/completions")["messages"]) == 1
    assert stopped not in turns(page)
    assert page.text(f"{LAST} .text") == "At the *old* bridge."
    assert page.text(f"{LAST} pre code") == "x = 1 < 2"
    assert page.text(f"{LAST} .text code") == "is"
    page.click(f"{LAST} footer [aria-label=Copy]")
    page.wait("document.querySelector('#status').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == server.answer


def test_conversations_outlive_a_reload(page, server):
    say(page, "one")
    page.click("#new-conversation")
    say(page, "two")
    say(page, "three")
    page.reload()
    assert turns(page) == ["two", "two", "three", "three"]
    titles = "[...document.querySelectorAll('#conversations .open')].map((open) => open.innerText)"
    assert page.evaluate(titles) == ["two", "one"]
    page.click("#conversations li:nth-child(2) .open")
    page.wait("document.querySelectorAll('.turn').length === 2")
    assert turns(page) == ["one", "one"]
    page.click("#conversations [aria-label='Delete one']")
    page.wait(f"{titles}.length === 1")
    page.click("#toast button")
    page.wait(f"{titles}.length === 2")
    assert turns(page) == ["one", "one"]


def test_turns_can_be_changed(page, server):
    say(page, "one")
    say(page, "two")
    page.click(".turn:nth-child(1) [aria-label=Edit]")
    page.type(" more")
    page.press("Escape")  # leaves it as it was
    assert turns(page) == ["one", "one", "two", "two"]
    page.click(".turn:nth-child(2) [aria-label=Edit]")
    page.type(" indeed")
    page.press("Enter")
    assert turns(page) == ["one", "one indeed", "two", "two"]
    page.press("ArrowUp")  # in the empty field: the last message
    page.type(" again")
    page.press("Enter")
    page.wait(f"{READY} && document.querySelectorAll('.turn').length === 4 && {asked('two again')}")
    sent = server.last("chat/completions")["messages"]
    assert [message["content"] for message in sent] == ["one", "one indeed", "two again"]
    page.wait(f"document.querySelector('{LAST} .body').innerText === 'two again'")
    page.click(".turn:nth-child(1) [aria-label^=Delete]")
    page.wait("document.querySelectorAll('.turn').length === 2")
    page.reload()
    assert turns(page) == ["two again", "two again"]


def test_settings_reach_the_request(page, server):
    say(page, "plain")
    assert server.last("chat/completions").keys() == {"model", "messages", "stream", "stream_options"}
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#chat-max_tokens", "12")
    page.fill("#chat-seed", "7")
    page.fill("#chat-stop", "\\n\nEnd")
    page.click("#chat-temperature")  # the middle of 0 to 2
    for _ in range(4):
        page.press("ArrowRight")
    page.press("Escape")
    assert not page.evaluate("document.querySelector('#settings').checkVisibility()")
    page.reload()
    say(page, "set")
    body = server.last("chat/completions")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"max_completion_tokens": 12, "seed": 7, "stop": ["\n", "End"], "temperature": 1.2}
    assert {name: body[name] for name in wanted} == wanted
    assert "top_p" not in body


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


def test_errors_say_what_to_do(page, server):
    server.refusals = [(429, {"message": "the queue is full", "code": None}, {"Retry-After": "7"})]
    page.click("#message")
    page.type("hello")
    page.press("Enter")
    assert [line for line in page.text(".error").split("\n") if line] == [
        "The queue is full.",
        "The server is busy. Try again in 7 s.",
        "Try again",
    ]
    page.click(".error button")
    page.wait(f"{READY} && document.querySelectorAll('.turn').length === 2 && !document.querySelector('.error')")

    server.broken = True
    page.type("there")
    page.press("Enter")
    assert "A rank has died." in page.text(".error")
    assert turns(page)[-1] == "there"  # what came is kept
    server.broken = False
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click(".error button")
    page.wait("document.querySelector('.error')?.innerText.includes('The server does not answer.')")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click(".error button")
    page.wait(f"{READY} && !document.querySelector('.error') && document.querySelectorAll('.turn').length === 4")


def test_oldest_exchanges_make_room(page, server):
    server.models = [{**model, "context_length": 24} for model in server.models]
    page.reload()
    for word in ("one", "two", "six"):
        say(page, f"{word} {word} {word}")
        sent = [message["content"][:3] for message in server.last("chat/completions")["messages"]]
    assert sent == ["two", "two", "six"]  # 9 words; with the first exchange 15, and half of the context is the answer's
    assert "2 earlier messages did not fit" in page.text(f"{LAST} .note")

    refusal = (400, {"message": "too long", "code": "context_length_exceeded"}, {})
    server.refusals = [refusal]
    say(page, "ten")
    assert [message["content"] for message in server.last("chat/completions")["messages"]] == ["ten"]
    assert "6 earlier messages did not fit" in page.text(f"{LAST} .note")
    server.refusals = [refusal] * 4
    page.type("longest")
    page.press("Enter")
    assert "Shorten the text" in page.text(".error")


def test_key_is_asked_for_and_sent(page, server):
    server.key = "secret"
    page.click("#message")
    page.type("hello")
    page.press("Enter")
    page.wait("document.querySelector('#key-dialog[open]')")
    page.type("wrong")
    page.press("Enter")
    page.wait("document.querySelector('#key-note').innerText.includes('did not take')")
    page.type("secret")
    page.press("Enter")
    page.wait(f"{READY} && document.querySelectorAll('.turn').length === 2")
    page.reload()
    assert page.evaluate("document.querySelector('#model').value") == "talker"
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    server.key = "another"
    page.click("#message")
    page.type("again")
    page.press("Enter")
    page.wait("document.querySelector('#key-dialog[open]')")
    page.click("#no-key")
    assert "Give the key" in page.text(".error")


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
