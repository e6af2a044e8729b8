"""`megagpt generate`."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megagpt.cli import options
from megagpt.cli.group import RankedCommand
from megagpt.cli.ranks import one_voice, restore_model, say
from megagpt.data.files import read_text
from megagpt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megagpt.model.generation import GenerationConfig, Generator


@click.command("generate", cls=RankedCommand, short_help="Continue prompts with a trained model.")
@options.checkpoint
@click.option("--prompt", "prompts", multiple=True, help="Text to continue; may be repeated.")
@click.option(
    "--prompt-file",
    type=options.FILE,
    help='.jsonl with {"prompt": "..."} on every line, or text with one prompt per line.',
)
@click.option("--suffix", help="Text after the completion: insert between every prompt and this text.")
@click.option("--instruction", help="Edit every prompt by this instruction instead of continuing it.")
@click.option("--num-samples", type=int, default=1, show_default=True, help="Completions of every prompt.")
@options.sampling(max_new_tokens=128)
@click.option("--top-k", type=int, default=0, help="Sample from the k likeliest tokens [default: all].")
@click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: repeat less.")
@click.option("--stop", multiple=True, help="End before this text; may be repeated.")
@options.as_json
@options.layout
@one_voice()
def command(
    checkpoint: Path,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    suffix: str | None,
    instruction: str | None,
    num_samples: int,
    temperature: float | None,
    greedy: bool,
    as_json: bool,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    **sampling: Any,
) -> None:
    """Continue prompts with a trained model.

    \b
    Examples
      megagpt generate --checkpoint runs/demo --prompt "def main("
      megagpt generate --checkpoint runs/demo --prompt-file prompts.jsonl --num-samples 4 --json > samples.jsonl
      megagpt generate --checkpoint runs/demo --nproc-per-node 2 --tensor-parallel-size 2 --greedy --prompt "def "
      megagpt generate --checkpoint runs/code --prompt "def double(x):" --suffix "    return y"
      megagpt generate --checkpoint runs/edit --prompt "helo wrld" --instruction "Fix the spelling." --greedy

    With a suffix, a model that was trained on fill-in-the-middle writes the text between prompt and suffix. With an
    instruction, a model that was trained on conversations writes the changed prompt. Text goes to the standard output;
    a single completion appears while it is written. --json prints one object per completion, with tokens and
    log-probabilities. Without a prompt, in a terminal, it asks for prompts one after another.
    """
    from megagpt.config.schema import ParallelConfig
    from megagpt.model.generation import GenerationConfig, Generator

    settings = GenerationConfig(temperature=options.temperature(temperature, greedy), **sampling)
    if suffix is not None and instruction is not None:
        raise ConfigError("--suffix inserts text and --instruction changes text: give only one of them")
    if num_samples < 1:
        raise ConfigError(f"--num-samples is {num_samples}; it must be at least 1")
    given = [*prompts, *(read_prompts(prompt_file) if prompt_file else [])]
    layout = ParallelConfig(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
    how = {"suffix": suffix, "instruction": instruction, "as_json": as_json}
    config, engine, tokenizer = restore_model(checkpoint, layout)
    generator = Generator(engine.modules, config, tokenizer)
    if given:
        show(generator, [prompt for prompt in given for _ in range(num_samples)], settings, **how)
        return
    for prompt in ask():
        try:
            show(generator, [prompt] * num_samples, settings, **how)
        except DataError as error:  # the prompt is too long; the next one may be shorter
            say(f"{error}\n")


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .jsonl file, or of a text file with one prompt per line, without empty lines. Raises DataError."""
    from megagpt.data.unread import log_unread

    lines = read_text(path, "prompts").split("\n")
    prompts, unread = [], Counter()
    for number, line in enumerate(lines, 1):
        if line.strip() and path.suffix == ".jsonl":
            try:
                record = json.loads(line)
                prompts.append(record["prompt"])
                unread.update(name for name in record if name != "prompt")
            except (ValueError, KeyError, TypeError):
                prompts.append(None)
            if not isinstance(prompts[-1], str):
                raise DataError(f'{path}:{number}: not a JSON object with "prompt" and its text')
        elif line.strip():
            prompts.append(line.rstrip("\r"))
    if not prompts:
        raise DataError(f"{path} holds no prompt")
    log_unread(path, unread)
    return prompts


def ask() -> Iterator[str]:
    """Prompts typed into the first rank's terminal, until end of file."""
    from megagpt.checkpoint import current_world

    world = current_world()
    if not world.broadcast(sys.stdin.isatty()):
        raise ConfigError("there is nothing to continue: give --prompt or --prompt-file")
    while True:
        line = None
        if world.rank == 0:
            try:
                line = input("prompt> ")
            except EOFError:
                say("\n")
        line = world.broadcast(line)
        if line is None:
            return
        yield line


def show(
    generator: "Generator",
    prompts: list[str],
    settings: "GenerationConfig",
    *,
    suffix: str | None,
    instruction: str | None,
    as_json: bool,
) -> None:
    """Generate and print: a single completion while it is written, several when all are finished."""
    from megagpt.data.chat import chat_prompt
    from megagpt.data.shapes import edit_messages

    inputs, around, rest = prompts, {}, ""
    if suffix is not None:
        rest, around = suffix, {"suffix": suffix}
        inputs = [generator.prompts.fim_prompt(prompt, rest) for prompt in prompts]
    if instruction is not None:
        around = {"instruction": instruction}
        inputs = [chat_prompt(generator.tokenizer, edit_messages(instruction, prompt)) for prompt in prompts]
    # An edited text replaces its prompt.
    shown = prompts if instruction is None else [""] * len(prompts)
    if len(prompts) == 1 and not as_json:
        unsaid = shown[0]  # printed with the first text, since the prompt may be refused
        first = instruction is not None
        for _, text in generator.stream(inputs, settings):
            say(unsaid + (generator.tokenizer.without_start(text) if first else text))
            unsaid, first = "", False
        say(f"{unsaid}{rest}\n")
        return
    for prompt, before, completion in zip(prompts, shown, generator.generate(inputs, settings), strict=True):
        if instruction is not None:
            completion = replace(completion, text=generator.tokenizer.without_start(completion.text))
        if as_json:
            say(json.dumps({"prompt": prompt} | around | asdict(completion), ensure_ascii=False) + "\n")
        else:
            say(f"{before}{completion.text}{rest}\n{'-' * 40}\n")
