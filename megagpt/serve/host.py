"""Loads a server's checkpoints."""

import datetime
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megagpt import checkpoint, env
from megagpt.config.schema import ParallelConfig
from megagpt.errors import ConfigError
from megagpt.model.generation import Generator
from megagpt.model.staged_model import for_generation
from megagpt.parallel import launch
from megagpt.serve.interface import Limits
from megagpt.serve.model_loop import ModelLoop, Runner
from megagpt.serve.text_model import TextCard
from megagpt.serve.text_runner import TextRunner
from megagpt.serve.vector_model import VectorCard
from megagpt.serve.vector_runner import VectorRunner
from megagpt.stages.embedding import load_embedder
from megagpt.stages.weights import load_another

Card = TextCard | VectorCard


@dataclass(frozen=True)
class Host:
    """Loaded models."""

    loop: ModelLoop
    """Runs them, see `ModelLoop.run`."""
    cards: list[Card]
    """In the order of the checkpoints and of the loop's runners."""


@contextmanager
def open_models(checkpoints: Mapping[str, Path], parallel: ParallelConfig, limits: Limits) -> Iterator[Host]:
    """Load checkpoints ({model name in the API: folder}) in the layout `parallel`.

    All ranks call it, in `ranks.one_voice`:

        with open_models({"ppo": Path("runs/ppo")}, ParallelConfig(), Limits()) as host:
            host.loop.run(connection if env.rank() == 0 else None)

    Raises ConfigError when the number of ranks does not match the layout and for a reward model or critic;
    CheckpointError for an invalid checkpoint.
    """
    ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if env.world_size() != ranks:
        raise ConfigError(
            f"a server has one replica of its models, so a tensor_parallel_size of {parallel.tensor_parallel_size} and "
            f"a pipeline_parallel_size of {parallel.pipeline_parallel_size} take {ranks} ranks, not "
            f"{env.world_size()}: for more replicas start more servers on other ports behind a load balancer"
        )
    launch.initialize(parallel, seed=0)
    with ExitStack() as stack:
        runners: list[Runner] = []
        cards: list[Card] = []
        for name, path in checkpoints.items():
            folder = checkpoint.find(path)
            created = int(checkpoint.read_manifest(folder).get("time", 0))
            runner = _load(folder, parallel, limits)
            if isinstance(runner, TextRunner):
                stack.enter_context(for_generation(runner.generator.modules))
                cards.append(TextCard(name, created, runner.generator.prompts))
            else:
                cards.append(VectorCard(name, created, runner.embedder.encoder, runner.embedder.size))
            runners.append(runner)
        yield Host(ModelLoop(runners, datetime.timedelta(minutes=parallel.timeout_minutes)), cards)


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
