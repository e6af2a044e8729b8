"""`megagpt serve`."""

import re
from pathlib import Path

import click

from megagpt import env
from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice
from megagpt.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][\w.:-]{0,99}", re.ASCII)


@click.command("serve", cls=RankedCommand, short_help="Serve models by OpenAI's API, with a page to talk to them.")
@click.argument("checkpoints", nargs=-1, required=True, type=options.INPUT, metavar="[NAME=]CHECKPOINT...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of IPv4.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0 is any."
)
@click.option("--api-key", help="Key that clients must send [default: MEGAGPT_API_KEY of the environment, if set].")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Also answer requests to this host name, for example the name of a proxy; may be repeated.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Completions that a model writes at the same time.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Completions that may wait for a model; more are refused with 429.",
)
@click.option(
    "--max-completions",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Completions per request: prompts times n or best_of.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=65536,
    show_default=True,
    help="Tokens that all completions of a request may generate.",
)
@click.option(
    "--prefill-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tokens of new prompts to process between two tokens of running completions.",
)
@click.option(
    "--prefix-memory",
    type=click.FloatRange(min=0),
    default=0.25,
    show_default=True,
    help="GiB per model for keys and values of common beginnings of prompts.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds for running requests to finish at SIGTERM or Ctrl-C.",
)
@options.layout
@one_voice()
def command(
    checkpoints: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    hosts: tuple[str, ...],
    max_batch_size: int,
    max_queue: int,
    max_completions: int,
    max_new_tokens: int,
    prefill_tokens: int,
    prefix_memory: float,
    grace: float,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
) -> None:
    """Serve models by OpenAI's API, with a page to talk to them.

    \b
    Examples
      megagpt serve runs/ppo
      megagpt serve chat=runs/ppo code=runs/code embed=runs/embed --port 8080
      megagpt serve runs/ppo --nproc-per-node 2 --tensor-parallel-size 2
      MEGAGPT_API_KEY=secret megagpt serve runs/ppo --host 0.0.0.0

    A run's folder means its best or newest checkpoint. The folder's name is the name of the model, unless NAME= gives
    another. The head of a model and the special tokens of its tokenizer decide its abilities: completions, insertion,
    chat, edits, or embeddings. The page is at /, the API below /v1, and metrics for Prometheus at /metrics.
    """
    named = by_name(checkpoints)
    key = check_key(api_key if api_key is not None else env.api_key())
    try:
        from megagpt.serve.bounds import Bounds
        from megagpt.serve.front import FrontSettings
        from megagpt.serve.interface import Limits
        from megagpt.serve.launch import run
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'megagpt[serve]'") from None
    from megagpt.config.schema import ParallelConfig

    settings = FrontSettings(
        key,
        hosts,
        # A request with more completions than the queue can hold must be refused, since retrying could never help.
        Bounds(completions=min(max_completions, max_batch_size + max_queue), new_tokens=max_new_tokens),
        Limits(max_batch_size, max_queue, prefill_tokens, prefix_memory),
        grace,
    )
    layout = ParallelConfig(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
    run(named, layout, settings, host, port)


def by_name(checkpoints: tuple[str, ...]) -> dict[str, Path]:
    """{name of the model: checkpoint}. Raises ConfigError if two models would have the same name."""
    from megagpt.config.home import at_home

    found: dict[str, Path] = {}
    for given in checkpoints:
        name, equals, path = given.partition("=")
        if not equals or not NAME.fullmatch(name):
            name, path = "", given
        folder = Path(at_home(path))
        name = name or name_of(folder)
        if name in found:
            raise ConfigError(
                f"{found[name]} and {folder} would both be the model {name}: name one, as in other={folder}"
            )
        found[name] = folder
    return found


def name_of(folder: Path) -> str:
    """The name of a run's folder, or of the run of a checkpoint. Raises ConfigError if it is not valid for a model."""
    whole = folder.absolute()
    name = whole.parents[1].name if whole.parent.name == "checkpoints" else whole.name
    if not NAME.fullmatch(name):
        raise ConfigError(f"{folder} gives no valid name for a model: put one before it, as in model={folder}")
    return name


def check_key(key: str | None) -> str | None:
    """The key, if it can be sent in a header. Raises ConfigError."""
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ConfigError("the API key must have printable ASCII characters, without spaces, and at least one")
    return key
