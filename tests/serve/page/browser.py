"""Chromium without a window, driven by its DevTools protocol through a pair of pipes: real clicks, keys, pictures."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --disable-extensions --disable-dev-shm-usage --remote-debugging-pipe"
)
PATIENCE = 30
"""Seconds to wait for what should happen at once; the machine may be busy."""

KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}
KEYS |= {name: (code, "") for code, name in enumerate(("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"), 37)}
MODIFIERS = {"alt": 1, "ctrl": 2, "shift": 8}


class Browser:
    """A running Chromium. Its commands go to file 3 of the process and its answers come from file 4."""

    def __init__(self, folder: Path) -> None:
        commands, self._commands = high_pipe()
        self._answers, answers = high_pipe()
        log = os.open(folder / "chromium.log", os.O_WRONLY | os.O_CREAT)
        ends = ((log, 1), (log, 2), (commands, 3), (answers, 4))  # the log's own number may be 3 or 4
        files = [(os.POSIX_SPAWN_DUP2, end, number) for end, number in ends]
        words = [CHROMIUM, *OPTIONS.split(), f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = os.posix_spawn(CHROMIUM, words, os.environ, file_actions=files)
        for file in (commands, answers, log):
            os.close(file)
        self._waiting = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a command. Events that come meanwhile are kept."""
        self._number += 1
        message = {
            "id": self._number,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, params, answer["error"])
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._waiting += part
        message, self._waiting = self._waiting.split(b"\0", 1)
        return json.loads(message)

    def close(self) -> None:
        """Ends the browser, and waits until it has."""
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._commands)
        os.close(self._answers)


class Page:
    """A tab that shows the page at an address."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def visit(self) -> None:
        """Loads the page as for the first time, on a wide and light screen; what happened before is forgotten."""
        self.browser.events.clear()
        self.resize(1280, 800)
        self.darken(False)
        self.evaluate("location.protocol === 'about:' || (localStorage.clear(), sessionStorage.clear())")
        self.load("Page.navigate", url=self.url)

    def reload(self) -> None:
        self.load("Page.reload")

    def load(self, method: str, **params: Any) -> None:
        """Does what loads the page, and waits until it has the models."""
        self.evaluate("window.before = true")
        self.call(method, **params)
        self.wait("!window.before && document.readyState === 'complete' && document.querySelector('#model option')")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Waits until an expression is true, and gives its value."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            value = self.evaluate(f"(() => {{ const it = {expression}; return it instanceof Node || it; }})()")
            if value:
                return value
            time.sleep(0.02)
        shown = self.evaluate("document.body.innerText")
        raise AssertionError(f"never true: {expression}\nThe page shows:\n{shown}\n{self.complaints()}")

    def text(self, selector: str) -> str:
        """What the first element of a selector shows, once there is one."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(found)
        return self.evaluate(f"{found}.innerText")

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into view; nothing else lies over it."""
        found = json.dumps(selector)
        self.wait(f"document.querySelector({found})")
        x, y, hit = self.evaluate(
            f"""(() => {{
              const element = document.querySelector({found});
              element.scrollIntoView({{ block: "nearest" }});
              const box = element.getBoundingClientRect();
              const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
              const top = document.elementFromPoint(x, y);
              return [x, y, element.contains(top) || top?.outerHTML];
            }})()"""
        )
        assert hit is True, f"{selector} is under {hit}"
        return x, y

    def hover(self, selector: str) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Types into what has the focus, key by key."""
        for letter in text:
            if letter == "\n":
                self.press("Enter", "shift")
                continue
            self.call("Input.dispatchKeyEvent", type="keyDown", text=letter, key=letter)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def fill(self, selector: str, text: str) -> None:
        """Clicks a field and puts a text in place of what is there."""
        self.click(selector)
        self.call("Input.dispatchKeyEvent", type="keyDown", key="a", code="KeyA", modifiers=2, commands=["selectAll"])
        self.call("Input.insertText", text=text)

    def press(self, key: str, *modifiers: str) -> None:
        code, text = KEYS[key]
        held = sum(MODIFIERS[modifier] for modifier in modifiers)
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": held}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def darken(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}  # no pictures are drawn where nothing happens
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    def picture(self, path: Path) -> None:
        """Writes what is on the screen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the browser wrote to this page's console, except that a request had an error's status."""
        self.evaluate("0")  # what has happened is reported before this is answered
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event["params"]
            if event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                found.append(json.dumps(params))
            elif event["method"] == "Log.entryAdded" and params["entry"]["source"] != "network":
                found.append(params["entry"]["text"])
        return found

    def requested(self) -> set[str]:
        """Addresses of all requests that this page made."""
        own = (event for event in self.browser.events if event.get("sessionId") == self.session)
        return {event["params"]["request"]["url"] for event in own if event["method"] == "Network.requestWillBeSent"}


def high_pipe() -> tuple[int, int]:
    """A pipe whose files have numbers above those that the browser expects its own under."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
