"""Runs the completions of one request concurrently, and merges them into one stream."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Self

from megagpt.serve.interface import GenerateRequest, NewToken, PromptToken, ServedModel

Item = NewToken | list[PromptToken]
"""An item of a completion: first the list of its prompt's tokens, if requested, then new tokens."""

AHEAD = 64
"""Largest number of unread items; the completions wait when it is reached."""


class Running:
    """The completions of `requests`; entering the context starts them, and leaving it cancels them.

    An error of one completion ends all of them.
    """

    def __init__(self, model: ServedModel, requests: Sequence[GenerateRequest], prompts_only: bool = False) -> None:
        """prompts_only: read only the tokens of the prompts, and generate nothing."""
        self._model, self._requests, self._prompts_only = model, requests, prompts_only
        self._items: asyncio.Queue[tuple[int, Item] | None] = asyncio.Queue(AHEAD)
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished = len(requests)
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._pump(*one)) for one in enumerate(self._requests)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def read(self, seconds: float | None = None) -> list[tuple[int, Item]] | None:
        """All unread (request number, item) pairs, waiting for at least one; empty after `seconds` without an item.

        None when all completions have ended. Raises the error of a completion.
        """
        found: list[tuple[int, Item]] = []
        try:
            async with asyncio.timeout(seconds):
                while self._unfinished and not found:
                    self._take(await self._items.get(), found)
        except TimeoutError:
            return found
        while not self._items.empty():
            self._take(self._items.get_nowait(), found)
        if self._error is not None:
            raise self._error
        return found or None

    def _take(self, item: tuple[int, Item] | None, found: list[tuple[int, Item]]) -> None:
        if item is None:
            self._unfinished -= 1
        else:
            found.append(item)

    async def _pump(self, number: int, request: GenerateRequest) -> None:
        try:
            async with aclosing(self._model.generate(request)) as items:
                async for item in items:
                    await self._items.put((number, item))
                    if self._prompts_only:
                        break
        except Exception as error:
            self._error = self._error or error
        await self._items.put(None)
