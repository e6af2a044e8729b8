"""Clients that leave, read nothing or come in hundreds; a server that is told to end, and models that fail."""

import asyncio
import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from megagpt.errors import DistributedError
from megagpt.serve.bounds import Bounds
from tests.serve.fake import FakeModel
from tests.serve.live import Live, live

LONG = {"model": "gpt", "prompt": [1], "max_tokens": 60}


def model(**settings) -> FakeModel:
    return FakeModel("gpt", {"completions"}, endless=True, **settings)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def request(body: dict) -> bytes:
    """A request for completions, after which the connection closes."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def send(served: Live, body: dict, read_buffer: int | None = None) -> socket.socket:
    """A connection on which a request was sent."""
    connection = socket.socket()
    if read_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer)
    connection.connect(served.bound.getsockname())
    connection.sendall(request(body))
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_places(stream):
    slow = model(seconds=0.05)
    with live(slow) as served:
        connection = send(served, LONG | {"stream": stream, "n": 5})
        until(lambda: slow.made > 5)
        connection.close()
        until(lambda: slow.active == 0)
        assert slow.made < 5 * 60
        metrics = httpx.get(f"{served.url}/metrics").text
        assert f'path="/v1/completions",status="{200 if stream else 499}"}} 1.0' in metrics


def test_a_client_that_reads_nothing_is_given_up():
    quick = model()
    quick.window = 10_000
    with live(quick, bounds=Bounds(stalled_seconds=0.5)) as served:
        served.bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # which connections inherit
        body = LONG | {"stream": True, "n": 8, "max_tokens": 5000, "logprobs": 5}
        connection = send(served, body, read_buffer=4096)
        until(lambda: quick.active == 8)
        until(lambda: quick.active == 0)
        assert quick.made < 8 * 5000 / 4  # it was not made for nobody
        connection.close()


def test_silence_is_filled_with_comments():
    with live(model(seconds=0.3), bounds=Bounds(ping_seconds=0.05)) as served:
        answer = httpx.post(f"{served.url}/v1/completions", json=LONG | {"max_tokens": 2, "stream": True}).text
    assert answer.startswith(": waiting\n\n") and answer.endswith("data: [DONE]\n\n")


def test_a_flood_is_bounded_and_nobody_gets_the_answer_of_another():
    busy = model(seconds=0.02, places=40)

    def expected(last: int) -> str:
        ids = [last]
        for _ in range(3):
            ids.append(int(busy.logprobs[ids[-1]].argmax()))
        return busy.tokenizer.decode(ids[1:])

    async def ask(served: Live, one: int) -> tuple[int, bytes, bytes]:
        """The prompt, and the head and the body of its answer."""
        reader, writer = await asyncio.open_connection(*served.bound.getsockname())
        writer.write(request({"model": "gpt", "prompt": [one % 250], "max_tokens": 3, "temperature": 0}))
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return one % 250, head, content

    async def flood(served: Live) -> list[tuple[int, bytes, bytes]]:
        asked = [asyncio.create_task(ask(served, one)) for one in range(500)]
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(f"{served.url}/health")).status_code == 200
        assert not all(task.done() for task in asked)
        return await asyncio.gather(*asked)

    with live(busy) as served:
        answers = asyncio.run(flood(served))
    answered = [(last, json.loads(content)) for last, head, content in answers if b" 200 " in head]
    assert len(answered) >= 40
    for last, answer in answered:
        assert answer["choices"][0]["text"] == expected(last)
    refused = [head for _, head, _ in answers if b" 200 " not in head]
    assert refused
    assert all(head.startswith(b"HTTP/1.1 429") and b"retry-after: 3\r\n" in head for head in refused)


def test_the_end_lets_short_answers_finish_and_tells_long_ones():
    slow = model(seconds=0.05)
    with live(slow, grace=0.6) as served, httpx.Client(base_url=served.url, timeout=20) as client:
        with (
            client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as long,
            client.stream("POST", "/v1/completions", json=LONG | {"stream": True, "max_tokens": 5}) as short,
        ):
            lines = long.iter_lines()
            assert next(lines).startswith("data: {")
            served.terminate()
            assert short.read().endswith(b"data: [DONE]\n\n")
            *_, last, nothing = lines
        assert (json.loads(last.removeprefix("data: "))["error"]["code"], nothing) == ("server_closing", "")
        served.thread.join(10)
        assert not served.thread.is_alive() and served.raised is None
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


def test_models_that_fail_end_the_server_with_their_error():
    slow = model(seconds=0.05)
    with live(slow) as served:
        connection = send(served, LONG)
        until(lambda: slow.made > 0)
        served.error = DistributedError("rank 1 has died")
        served.thread.join(10)
        assert served.raised is served.error
        assert connection.recv(100).startswith(b"HTTP/1.1 503")
        connection.close()
