"""Loads a server's checkpoints and runs them; implements `interface`."""

import datetime
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megagpt import checkpoint, env
from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError
from megagpt.model.generation import Generator
from megagpt.model.staged_model import for_generation
from megagpt.parallel import launch
from megagpt.serve.interface import Limits, ServedModel
from megagpt.serve.model_loop import ModelLoop
from megagpt.serve.text_model import TextModel, TextRunner
from megagpt.serve.vector_model import VectorModel, VectorRunner
from megagpt.stages.embedding import load_embedder
from megagpt.stages.weights import load_another

log = logging.getLogger(__name__)


class Host:
    """Implements `ModelHost`."""

    def __init__(self, loop: ModelLoop, models: list[ServedModel]) -> None:
        self._loop, self.models = loop, models

    async def failed(self) -> None:
        """See `ModelHost.failed`."""
        await self._loop.failed()

    def follow(self) -> None:
        """See `ModelHost.follow`. Ignores signals: only the first rank handles them, and tells the others to end."""
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop.run()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def open_models(checkpoints: Mapping[str, Path], parallel: ParallelConfig, limits: Limits) -> Iterator[Host]:
    """Load checkpoints ({model name in the API: folder}) in the layout `parallel`, and run them.

    All ranks call it, in `ranks.one_voice`:

        with open_models({"ppo": Path("runs/ppo")}, ParallelConfig(), Limits()) as host:
            if env.rank() > 0:
                host.follow()
            else:
                asyncio.run(serve(host))  # which also waits for host.failed()

    Leaving the context ends running completions: their iterators raise MegaGPTError. Raises ConfigError when the number
    of ranks does not match the layout and for a reward model or critic; CheckpointError for an invalid checkpoint.
    """
    ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if env.world_size() != ranks:
        raise ConfigError(
            f"a server has one replica of its models, so a tensor_parallel_size of {parallel.tensor_parallel_size} and "
            f"a pipeline_parallel_size of {parallel.pipeline_parallel_size} take {ranks} ranks, not "
            f"{env.world_size()}: for more replicas start more servers on other ports behind a load balancer"
        )
    launch.initialize(parallel, seed=0)
    folders = [checkpoint.find(path) for path in checkpoints.values()]
    runners = [_load(folder, parallel, limits) for folder in folders]
    loop = ModelLoop(runners, datetime.timedelta(minutes=parallel.timeout_minutes))
    with ExitStack() as stack:
        for runner in runners:
            if isinstance(runner, TextRunner):
                stack.enter_context(for_generation(runner.generator.modules))
        if env.rank() > 0:
            yield Host(loop, [])
            return
        models: list[ServedModel] = []
        for number, (name, folder, runner) in enumerate(zip(checkpoints, folders, runners, strict=True)):
            created = int(checkpoint.read_manifest(folder).get("time", 0))
            kind = TextModel if isinstance(runner, TextRunner) else VectorModel
            models.append(kind(name, created, runner, loop, number, limits))
            log.info("%s: %s", name, ", ".join(sorted(models[-1].abilities)))
        loop.start()
        try:
            yield Host(loop, models)
        finally:
            loop.close()


def _load(folder: Path, parallel: ParallelConfig, limits: Limits) -> TextRunner | VectorRunner:
    """The model of a checkpoint on this rank. Raises ConfigError unless it generates text or computes vectors."""
    head = checkpoint.config_of(folder).model.head
    if head == "embedding":
        return VectorRunner(load_embedder(folder, parallel, load_another))
    if head != "tokens":
        raise ConfigError(
            f"{folder} is of a reward model or a critic (model.head={head}), which cannot be served: serve a language"
            " model or an embedding model"
        )
    config, engine, tokenizer = load_another(folder, parallel)
    return TextRunner(Generator(engine.modules, config, tokenizer), config, limits)
