"""A small server of the page and of the API that it talks to, whose answers the test chooses."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import numpy as np

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript"}
MODELS = [
    {"id": "talker", "abilities": ["completions", "chat"], "context_length": 1024, "dimensions": 0},
    {"id": "editor", "abilities": ["completions", "suffix", "edits"], "context_length": 512, "dimensions": 0},
    {"id": "embedder", "abilities": ["embeddings"], "context_length": 256, "dimensions": 6},
]


class PageServer(ThreadingHTTPServer):
    """Serves on a free port of loopback until it is closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.folder = resources.files("megagpt.serve") / "page"
        self.reset()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        self.models = MODELS
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.refusals: list[tuple[int, dict[str, Any], dict[str, str]]] = []
        """Refusals of the next requests: status, error, headers."""
        self.key: str | None = None
        self.answer: str | None = None
        """What every generation says; None: it repeats the last message."""
        self.endless = False
        """Whether an answer goes on until its reader is gone."""
        self.broken = False
        """Whether a stream ends in an error."""
        self.gone = threading.Event()
        """Set when the reader of an endless answer was gone."""

    def last(self, path: str) -> dict[str, Any]:
        """The last request's body for a path of the API."""
        return next(body for asked, body in reversed(self.requests) if asked == path)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request and closes."""

    server: PageServer

    def log_message(self, *words: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        file = re.fullmatch(r"/page/([a-z]+\.(css|js))", self.path)
        if self.path == "/" or file:
            name = file[1] if file else "index.html"
            body = (self.server.folder / name).read_bytes()
            self.reply(200, body, {"Content-Type": TYPES[name.split(".")[1]], "Content-Security-Policy": POLICY})
        elif self.path == "/v1/models" and self.allowed():
            self.reply_json(200, {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/v1/")
        if not self.allowed():
            return
        self.server.requests.append((path, body))
        if self.server.refusals:
            status, error, headers = self.server.refusals.pop(0)
            self.reply_json(status, {"error": error}, headers)
        elif path == "embeddings":
            vectors = {text: vector(text) for text in body["input"]}
            data = [{"index": n, "embedding": vectors[text].tolist()} for n, text in enumerate(body["input"])]
            self.reply_json(200, {"data": data[::-1]})
        elif path == "edits":
            text = self.server.answer or body["input"].upper()
            self.reply_json(200, {"choices": [{"index": 0, "text": text}]})
        elif path == "completions":
            self.stream(completion_chunks(body, self.words(" and so on")), body)
        else:
            self.stream(chat_chunks(body["messages"], self.words(body["messages"][-1]["content"])), body)

    def allowed(self) -> bool:
        wanted = self.server.key
        if wanted is None or self.headers["Authorization"] == f"Bearer {wanted}":
            return True
        self.reply_json(401, {"error": {"message": "the API key is missing or wrong", "code": "invalid_api_key"}})
        return False

    def words(self, text: str) -> Iterator[str]:
        yield from re.findall(r"\s*\S+|\s+$", self.server.answer or text)
        while self.server.endless:
            time.sleep(0.01)
            yield " more"

    def stream(self, chunks: Iterator[dict[str, Any]], body: dict[str, Any]) -> None:
        assert body["stream"] is True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in chunks:
                self.event(json.dumps(chunk))
            if self.server.broken:
                self.event(json.dumps({"error": {"message": "a rank has died", "code": None}}))
            else:
                self.event("[DONE]")
        except (BrokenPipeError, ConnectionResetError):
            self.server.gone.set()

    def event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def reply_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def chat_chunks(messages: list[dict[str, str]], words: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Chunks of chat.completion.chunk: the role, the words, why it ended, and what was used: a word is a token."""
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    count = 0
    for count, word in enumerate(words, 1):  # noqa: B007
        yield {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    asked = sum(len(message["content"].split()) for message in messages)
    yield {"choices": [], "usage": {"prompt_tokens": asked, "completion_tokens": count, "total_tokens": asked + count}}


def completion_chunks(body: dict[str, Any], words: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Chunks of text_completion with log-probabilities; offsets count characters from the start of the text."""
    offset = 0
    for word in words:
        logprobs = {
            "tokens": [word],
            "token_logprobs": [float(np.log(0.75))],
            "top_logprobs": [{word: float(np.log(0.75)), " other": float(np.log(0.125))}],
            "text_offset": [offset],
        }
        offset += len(word)
        for index in range(body.get("n", 1)):
            yield {"choices": [{"index": index, "text": word, "logprobs": logprobs, "finish_reason": None}]}
    for index in range(body.get("n", 1)):
        yield {"choices": [{"index": index, "text": "", "logprobs": None, "finish_reason": "length"}]}


def vector(text: str) -> np.ndarray:
    """A vector of length 1 that depends on the text alone, float64 [6]."""
    drawn = np.random.default_rng(list(text.encode())).standard_normal(6)
    return drawn / np.linalg.norm(drawn)
