"""Models that do not learn need the GPU only while they are used."""

from collections.abc import Iterator
from contextlib import contextmanager

from megagpt.parallel.engine import Engine


@contextmanager
def on_device(engine: Engine, offload: bool) -> Iterator[None]:
    """Have the model of `engine` on its device in a block; if `offload`, it is in CPU memory outside of it."""
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
