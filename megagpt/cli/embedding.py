"""Functions of the commands that embed texts on several ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megagpt.checkpoint import World
    from megagpt.config.schema import ParallelConfig
    from megagpt.evaluate.vectors import Embeds


def find_checkpoint(
    path: Path, tensor_parallel_size: int, pipeline_parallel_size: int, micro_batch_size: int
) -> tuple[Path, "World"]:
    """(the checkpoint at `path`, the ranks). All ranks call this together and get the same checkpoint.

    Raises CheckpointError when there is none, ConfigError when the number of ranks does not fit the layout.
    """
    from megagpt import env
    from megagpt.checkpoint import current_world, find
    from megagpt.config.layout_rules import world_size_fits
    from megagpt.config.load import raise_all
    from megagpt.config.schema import Config
    from megagpt.parallel import launch

    parallel = _layout(tensor_parallel_size, pipeline_parallel_size, micro_batch_size)
    raise_all(list(world_size_fits(Config(parallel=parallel), env.world_size())))
    if env.world_size() > 1:  # a single rank makes its groups when it loads the model
        launch.initialize(parallel, seed=0)
    world = current_world()
    return find(path, world), world


def loader(tensor_parallel_size: int, pipeline_parallel_size: int, micro_batch_size: int) -> Callable[[Path], "Embeds"]:
    """A function that loads a checkpoint's embedder in this layout."""
    from megagpt.stages import embedding

    parallel = _layout(tensor_parallel_size, pipeline_parallel_size, micro_batch_size)
    return lambda folder: embedding.load_embedder(folder, parallel)


def _layout(tensor: int, pipeline: int, micro_batch_size: int) -> "ParallelConfig":
    from megagpt.config.schema import ParallelConfig

    return ParallelConfig(
        tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, micro_batch_size=micro_batch_size
    )
