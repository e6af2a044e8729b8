"""Talk to a model that was trained on conversations.

python tools/chat.py --checkpoint runs/ppo
python tools/chat.py --checkpoint runs/sft --system "Answer in capitals." --temperature 0.7
printf 'Reverse: cat dog\\nAgain.\\n' | python tools/chat.py --checkpoint runs/ppo --greedy
torchrun --nproc-per-node 2 tools/chat.py --checkpoint runs/ppo --tensor-parallel-size 2

Answers come as they are written; Ctrl-C stops one. The oldest exchanges are forgotten when the context is full.
Commands: /reset forgets all turns, /undo the last exchange, /system TEXT sets what the model is told first, and /quit
(or end of file) ends. Without a terminal every line of the input is a turn, and every answer is written as a line.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from megagpt import env
from megagpt.checkpoint import current_world
from megagpt.config.schema import ParallelConfig
from megagpt.data.chat import role_ids
from megagpt.data.history import History
from megagpt.errors import ConfigError, DataError, MegaGPTError
from megagpt.log import run_tool
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel import launch
from megagpt.stages.weights import load_model

COMMANDS = ("/reset", "/undo", "/system", "/quit")


def main() -> int:
    """Run the command line; the ranks that share the model act together, and the first one speaks."""
    options = parse()
    try:
        talk(options)
        return 0
    except MegaGPTError as error:
        if launch.is_first_failure() if dist.is_initialized() else env.rank() == 0:
            raise
        return error.exit_code
    finally:
        launch.shutdown()


def parse() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="run folder (its newest checkpoint) or one checkpoint")
    add("--system", help="what the model is told before everything else")
    add("--max-new-tokens", type=int, default=256, help="longest answer, tokens (default %(default)s)")
    heat = parser.add_mutually_exclusive_group()
    heat.add_argument("--temperature", type=float, default=1.0, help="default %(default)s")
    heat.add_argument("--greedy", action="store_const", dest="temperature", const=0.0, help="take the likeliest token")
    add("--top-p", type=float, default=1.0, help="sample from the likeliest tokens of this probability")
    add("--seed", type=int, default=0, help="seed of sampling (default %(default)s)")
    add("--tensor-parallel-size", type=int, default=1, help="ranks that share every layer (under torchrun)")
    add("--pipeline-parallel-size", type=int, default=1, help="stages of layers (under torchrun)")
    return parser.parse_args()


def talk(options: argparse.Namespace) -> None:
    """Load the model, and answer until there is nothing more to answer."""
    parallel = ParallelConfig(
        tensor_parallel_size=options.tensor_parallel_size, pipeline_parallel_size=options.pipeline_parallel_size
    )
    needed = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if env.world_size() != needed:
        raise ConfigError(
            f"--tensor-parallel-size x --pipeline-parallel-size is {needed}, but there are {env.world_size()} ranks: "
            f"start it with torchrun --nproc-per-node {needed}"
        )
    config, engine, tokenizer = load_model(options.checkpoint, parallel)
    role_ids(tokenizer)  # a model that was never told who speaks is refused here
    generator = Generator(engine.modules, config, tokenizer)
    history = History(tokenizer, generator.window, min(options.max_new_tokens, generator.window // 2), options.system)
    for turn, line in enumerate(lines()):
        if line.startswith("/"):
            if not command(line, history):
                return
            continue
        sampling = GenerationConfig(
            options.max_new_tokens, options.temperature, top_p=options.top_p, seed=options.seed + turn
        )
        answer(line, history, generator, sampling)


def lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, at the first rank; empty lines are passed over."""
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


def command(line: str, history: History) -> bool:
    """Obey a command; False to end."""
    name, _, rest = line.strip().partition(" ")
    if name == "/reset":
        history.reset()
    elif name == "/undo":
        history.undo()
    elif name == "/system":
        history.system = rest or None
    elif name != "/quit":
        say(f"{name} is no command: {', '.join(COMMANDS)}\n")
    return name != "/quit"


def answer(line: str, history: History, generator: Generator, settings: GenerationConfig) -> None:
    """Ask, and write the answer as it comes. An answer that was stopped stays in the conversation as far as it got."""
    try:
        prompt, left_out = history.ask(line)
    except DataError as error:  # the next turn may be shorter
        say(f"{error}\n")
        return
    if left_out:
        note(f"(the context is full: the oldest {left_out} turns are left out)\n")
    parts = []
    try:
        for _, text in generator.stream([prompt], settings):
            say(text)
            parts.append(text)
    except KeyboardInterrupt:
        if dist.get_world_size() > 1:
            raise  # ranks that share a model stop together
    say("\n")
    history.answered("".join(parts))


def say(text: str) -> None:
    """Write to the standard output at once, on the first rank."""
    if env.rank() == 0:
        print(text, end="", flush=True)


def note(text: str) -> None:
    """Write what is not the model's to the standard error, on the first rank."""
    if env.rank() == 0:
        print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_tool(main)
