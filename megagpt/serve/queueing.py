"""Counts a model's open requests and limits their number."""

import time

from megagpt.serve.interface import Busy

SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Range of the seconds after which a client is told to try again."""


class OpenRequests:
    """Counts the running and waiting requests of a model."""

    def __init__(self, places: int, waiting: int) -> None:
        """places: how many requests the model works on at the same time. waiting: how many more may wait."""
        self.places, self.most = places, places + waiting
        self.count = 0
        self._seconds = 1.0  # moving average of a request's duration

    def check(self, more: int = 1) -> None:
        """Raises Busy when there is no room for `more` requests; a model without requests takes any number."""
        if self.count and self.count + more > self.most:
            wait = self._seconds * max(1, self.count - self.places) / self.places
            raise Busy(min(max(wait, SHORTEST_WAIT), LONGEST_WAIT))

    def add(self, count: int = 1) -> float:
        """Count `count` new requests; returns the current time, for `remove`."""
        self.count += count
        return time.monotonic()

    def remove(self, begun: float, count: int = 1) -> None:
        """Count `count` requests, which were added at time `begun`, as ended."""
        self.count -= count
        self._seconds += 0.1 * (time.monotonic() - begun - self._seconds)
