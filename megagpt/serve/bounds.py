"""How much one request, and all of them together, may ask of the HTTP side."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Bounds of requests. `interface.Limits` has those of the models."""

    body_bytes: int = 4 << 20
    """Bytes of a request's body."""
    body_seconds: float = 30.0
    """Time in which a body must have arrived."""
    requests: int = 512
    """Requests that are answered at a time; more get 429."""
    completions: int = 128
    """Completions of a request: its prompts times `n`, or times `best_of`."""
    new_tokens: int = 1 << 16
    """Tokens that all completions of a request may generate together."""
    stalled_seconds: float = 60.0
    """Time after which a client that reads nothing of its stream is given up."""
    ping_seconds: float = 15.0
    """Silence in a stream after which a comment is sent, so that no proxy takes it for dead."""
