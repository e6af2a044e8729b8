"""Models that do not learn need the GPU only while they are used."""

from collections.abc import Iterator
from contextlib import contextmanager

from megagpt.parallel.engine import Engine


@contextmanager
def on_device(engine: Engine, offload: bool) -> Iterator[None]:
    """Have the model of `engine` on its device for a while; if `offload`, it waits in the CPU's memory otherwise."""
    if offload:
        for module in engine.modules:
            module.to(engine.device)
    yield
    if offload:
        rest(engine)


def rest(engine: Engine) -> None:
    """Have the model of `engine` in the CPU's memory, until it is used."""
    for module in engine.modules:
        module.to("cpu")
