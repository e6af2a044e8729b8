"""Talking to a model through the page."""

import json

from tests.serve.page.browser import Page

READY = "document.querySelector('#send').ariaLabel === 'Send'"
LAST = ".turn:last-child"


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
