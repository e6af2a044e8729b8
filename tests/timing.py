"""Times that a busy machine hardly changes, to be compared with each other and never with a number of seconds."""

import time
from collections.abc import Callable
from typing import Any


def cpu_seconds(function: Callable, *args: Any) -> float:
    """CPU time of a call in this process, the least of three."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        function(*args)
        seconds.append(time.process_time() - began)
    return min(seconds)
