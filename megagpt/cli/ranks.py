"""Functions of the commands that run a model on several ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megagpt import env
from megagpt.cli.group import reported_by_first_rank
from megagpt.errors import ConfigError, MegaGPTError

if TYPE_CHECKING:
    from megagpt.config.schema import Config, ParallelConfig
    from megagpt.data.tokenizer import Tokenizer
    from megagpt.parallel.engine import Objective
    from megagpt.parallel.megatron import MegatronEngine


@contextmanager
def one_voice() -> Iterator[None]:
    """A context for all ranks of a command: the first rank that fails reports its error, the others only exit.

    A rank that failed must end its process, because its process groups are not shut down; see `launch.abandon`.
    """
    import torch.distributed as dist

    from megagpt.parallel import launch

    try:
        yield
    except BaseException as error:
        launch.abandon()
        if not isinstance(error, MegaGPTError):
            raise
        if dist.is_initialized():
            if launch.is_first_failure():
                raise
            raise click.exceptions.Exit(error.exit_code) from None
        if env.rank() == 0:
            raise
        raise click.exceptions.Exit(reported_by_first_rank(error.exit_code)) from None
    launch.shutdown()


def restore_model(
    checkpoint: Path, parallel: "ParallelConfig", objective: "Objective | None" = None
) -> tuple["Config", "MegatronEngine", "Tokenizer"]:
    """The model of a checkpoint, divided among the ranks; see `load_model`.

    Raises ConfigError when there are more or fewer ranks than the layout needs.
    """
    from megagpt.stages.weights import load_model

    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    if env.world_size() != tensor * pipeline:
        raise ConfigError(
            f"--tensor-parallel-size {tensor} x --pipeline-parallel-size {pipeline} needs {tensor * pipeline} ranks, "
            f"not {env.world_size()}: start them with --nproc-per-node {tensor * pipeline}"
        )
    return load_model(checkpoint, parallel, objective)


def say(text: str) -> None:
    """Write to the standard output at once, on the first rank."""
    if env.rank() == 0:
        click.echo(text, nl=False)
