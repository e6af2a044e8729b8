"""Limits of the HTTP side, for one request and for all together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Limits of requests; for limits of the models see `interface.Limits`."""

    body_bytes: int = 4 << 20
    """Largest size of a request's body, in bytes."""
    body_seconds: float = 30.0
    """Longest time for a body to arrive, in seconds."""
    requests: int = 512
    """Largest number of concurrent requests; further ones get status 429."""
    completions: int = 128
    """Largest number of completions per request: its prompts times `n`, or times `best_of`."""
    new_tokens: int = 1 << 16
    """Largest number of tokens that all completions of a request may generate together."""
    stalled_seconds: float = 60.0
    """A client that reads nothing of its stream for this many seconds counts as disconnected."""
    ping_seconds: float = 15.0
    """A stream sends a comment after this many seconds without a token, so that proxies keep the connection open."""
