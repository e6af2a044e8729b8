"""Keeps frozen models in CPU memory while they are not used."""

from collections.abc import Iterator
from contextlib import contextmanager

from megagpt.parallel.engine import Engine


@contextmanager
def on_device(engine: Engine, offload: bool) -> Iterator[None]:
    """Context in which the model of `engine` is on its device; if `offload`, it moves to CPU memory afterwards."""
    if offload:
        for module in engine.modules:
            module.to(engine.device)
    yield
    if offload:
        offload_to_cpu(engine)


def offload_to_cpu(engine: Engine) -> None:
    """Move the model of `engine` to CPU memory."""
    for module in engine.modules:
        module.to("cpu")
