"""The chat in a browser: real clicks and keys, against a small server of the API."""

import pytest

from tests.serve.page.talk import LAST, READY, asked, say, turns

pytestmark = pytest.mark.slow


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
