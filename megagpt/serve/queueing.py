"""A bounded queue of requests, as the event loop sees it."""

import time

from megagpt.serve.interface import Busy

SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds after which a client is told to try again."""


class OpenRequests:
    """Counts the requests that a model has taken on."""

    def __init__(self, places: int, waiting: int) -> None:
        """places: how many it works on at a time; waiting: how many may wait besides."""
        self.places, self.most = places, places + waiting
        self.count = 0
        self._seconds = 1.0  # that a request takes, smoothed

    def check(self, more: int = 1) -> None:
        """Raises Busy when there is no room for so many more; a model that has none takes any number."""
        if self.count and self.count + more > self.most:
            wait = self._seconds * max(1, self.count - self.places) / self.places
            raise Busy(min(max(wait, SHORTEST_WAIT), LONGEST_WAIT))

    def add(self, count: int = 1) -> float:
        """There are so many more; returns the time."""
        self.count += count
        return time.monotonic()

    def remove(self, begun: float, count: int = 1) -> None:
        """So many, which were added at `begun`, have ended."""
        self.count -= count
        self._seconds += 0.1 * (time.monotonic() - begun - self._seconds)
