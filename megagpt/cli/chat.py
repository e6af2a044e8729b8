"""`megagpt chat`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megagpt import env
from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice, restore_model, say
from megagpt.errors import DataError

if TYPE_CHECKING:
    from megagpt.data.history import History
    from megagpt.model.generation import GenerationConfig, Generator

COMMANDS = ("/reset", "/undo", "/system", "/quit")


@click.command("chat", cls=RankedCommand, short_help="Talk to a model that was trained on conversations.")
@options.checkpoint
@click.option("--system", help="System prompt: a text before all turns.")
@options.sampling(max_new_tokens=256)
@options.layout
@one_voice()
def command(
    checkpoint: Path,
    system: str | None,
    temperature: float | None,
    greedy: bool,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
) -> None:
    """Talk to a model that was trained on conversations.

    \b
    Examples
      megagpt chat --checkpoint runs/ppo
      megagpt chat --checkpoint runs/sft --system "Answer in capitals." --temperature 0.7
      printf 'Reverse: cat dog\\nAgain.\\n' | megagpt chat --checkpoint runs/ppo --greedy
      megagpt chat --checkpoint runs/ppo --nproc-per-node 2 --tensor-parallel-size 2

    Answers appear while they are written; Ctrl-C stops one. The oldest exchanges are forgotten when the context is
    full. Commands: /reset forgets all turns, /undo forgets the last exchange, /system TEXT sets the system prompt, and
    /quit (or end of file) ends. Without a terminal, every line of the input is a turn, and every answer is written as
    a line.
    """
    from megagpt.config.schema import ParallelConfig
    from megagpt.data.chat import check_chat
    from megagpt.data.history import History
    from megagpt.model.generation import GenerationConfig, Generator

    heat = options.temperature(temperature, greedy)
    layout = ParallelConfig(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
    config, engine, tokenizer = restore_model(checkpoint, layout)
    generator = Generator(engine.modules, config, tokenizer)
    check_chat(tokenizer)  # raises if the tokenizer has no tokens for roles
    history = History(tokenizer, generator.window, min(max_new_tokens, generator.window // 2), system)
    for turn, line in enumerate(lines()):
        if not line.startswith("/"):
            answer(line, history, generator, GenerationConfig(max_new_tokens, heat, top_p=top_p, seed=seed + turn))
        elif not obey(line, history):
            return


def lines() -> Iterator[str]:
    """Lines of the first rank's terminal or pipe, for all ranks, without empty ones."""
    from megagpt.checkpoint import current_world

    world, shown = current_world(), sys.stdin.isatty()
    while True:
        line = None
        if world.rank == 0:
            try:
                line = input("you> " if shown else "")
            except (EOFError, KeyboardInterrupt):
                say("\n" if shown else "")
        line = world.broadcast(line)
        if line is None:
            return
        if line.strip():
            yield line


def obey(line: str, history: "History") -> bool:
    """Run a command. Returns False for /quit."""
    name, _, rest = line.strip().partition(" ")
    if name == "/reset":
        history.reset()
    elif name == "/undo":
        history.undo()
    elif name == "/system":
        history.system = rest or None
    elif name != "/quit":
        say(f"{name} is not a command; the commands are {', '.join(COMMANDS)}\n")
    return name != "/quit"


def answer(line: str, history: "History", generator: "Generator", settings: "GenerationConfig") -> None:
    """Ask, and write the answer while it is generated. The part of a stopped answer stays in the conversation."""
    try:
        prompt, left_out = history.ask(line)
    except DataError as error:  # the next turn may be shorter
        say(f"{error}\n")
        return
    if left_out and env.rank() == 0:
        click.echo(f"(the context is full: the oldest {left_out} turns are left out)", err=True)
    parts = []
    try:
        for _, piece in generator.stream([prompt], settings):
            text = piece if parts else generator.tokenizer.without_start(piece)
            say(text)
            parts.append(text)
    except KeyboardInterrupt:
        if env.world_size() > 1:
            raise  # ranks that share a model must stop together
    say("\n")
    history.respond("".join(parts))
