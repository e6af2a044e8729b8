"""Continue prompts with a trained model.

python tools/generate.py --checkpoint runs/demo --prompt "def main("
python tools/generate.py --checkpoint runs/demo --prompt-file prompts.jsonl --num-samples 4 --json > samples.jsonl
torchrun --nproc-per-node 2 tools/generate.py --checkpoint runs/demo --tensor-parallel-size 2 --greedy --prompt "def "
python tools/generate.py --checkpoint runs/code --prompt "def double(x):" --suffix "    return y"
python tools/generate.py --checkpoint runs/edit --prompt "helo wrld" --instruction "Fix the spelling." --greedy

With a suffix, a model that was trained on filling in the middle writes what belongs between the two; with an
instruction, one that was trained on conversations writes the prompt anew, as the instruction says.
Text goes to the standard output, a single completion as it comes. Without a prompt, in a terminal, it asks for one
after another.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import torch.distributed as dist

from megagpt import env
from megagpt.checkpoint import current_world
from megagpt.config.schema import ParallelConfig
from megagpt.data.chat import chat_prompt
from megagpt.data.shapes import edit_messages
from megagpt.errors import ConfigError, DataError, MegaGPTError
from megagpt.log import run_tool
from megagpt.model.generation import GenerationConfig, Generator
from megagpt.parallel import launch
from megagpt.stages.weights import load_model


def main() -> int:
    """Run the command line; the ranks that share the model act together, and the first one speaks."""
    arguments = parse()
    try:
        run(arguments)
        return 0
    except MegaGPTError as error:
        if launch.is_first_failure() if dist.is_initialized() else env.rank() == 0:
            raise
        return error.exit_code
    finally:
        launch.shutdown()


def parse() -> argparse.Namespace:
    """The command line's options; those of `GenerationConfig` have its defaults."""
    default = {field.name: field.default for field in fields(GenerationConfig)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="run folder (its newest checkpoint) or one checkpoint")
    add("--prompt", action="append", default=[], help="text to continue; give it several times for several prompts")
    add("--prompt-file", type=Path, help='.jsonl with {"prompt": "..."} on every line, or text with a prompt a line')
    add("--suffix", help="text that follows: insert between every prompt and it")
    add("--instruction", help="edit every prompt by this instruction instead of continuing it")
    add("--num-samples", type=int, default=1, help="completions of every prompt (default 1)")
    add(
        "--max-new-tokens", type=int, default=default["max_new_tokens"], help="tokens to generate (default %(default)s)"
    )
    heat = parser.add_mutually_exclusive_group()
    heat.add_argument("--temperature", type=float, default=default["temperature"], help="default %(default)s")
    heat.add_argument("--greedy", action="store_const", dest="temperature", const=0.0, help="take the likeliest token")
    add("--top-k", type=int, default=default["top_k"], help="sample from the k likeliest tokens (default: all)")
    add("--top-p", type=float, default=default["top_p"], help="sample from the likeliest tokens of this probability")
    add("--repetition-penalty", type=float, default=default["repetition_penalty"], help="above 1: repeat less")
    add("--stop", action="append", default=[], help="end before this text; give it several times for several texts")
    add("--seed", type=int, default=default["seed"], help="seed of sampling (default %(default)s)")
    add("--json", action="store_true", help="print a JSON object a completion, with tokens and log-probabilities")
    add("--tensor-parallel-size", type=int, default=1, help="ranks that share every layer (under torchrun)")
    add("--pipeline-parallel-size", type=int, default=1, help="stages of layers (under torchrun)")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """Load the model and continue what is asked for."""
    settings = GenerationConfig(
        **{field.name: getattr(arguments, field.name) for field in fields(GenerationConfig) if field.name != "stop"},
        stop=tuple(arguments.stop),
    )
    if arguments.suffix is not None and arguments.instruction is not None:
        raise ConfigError("--suffix asks for what lies between two texts and --instruction for a text anew: give one")
    if arguments.num_samples < 1:
        raise ConfigError(f"--num-samples is {arguments.num_samples}; it must be at least 1")
    prompts = [*arguments.prompt, *(read_prompts(arguments.prompt_file) if arguments.prompt_file else [])]
    parallel = ParallelConfig(
        tensor_parallel_size=arguments.tensor_parallel_size, pipeline_parallel_size=arguments.pipeline_parallel_size
    )
    needed = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if env.world_size() != needed:
        raise ConfigError(
            f"--tensor-parallel-size {parallel.tensor_parallel_size} x --pipeline-parallel-size "
            f"{parallel.pipeline_parallel_size} needs {needed} ranks, not {env.world_size()}: start it with "
            f"torchrun --nproc-per-node {needed}"
        )
    config, engine, tokenizer = load_model(arguments.checkpoint, parallel)
    generator = Generator(engine.modules, config, tokenizer)
    if prompts:
        prompts = [prompt for prompt in prompts for _ in range(arguments.num_samples)]
        show(generator, prompts, arguments, settings)
        return
    for prompt in ask():
        try:
            show(generator, [prompt] * arguments.num_samples, arguments, settings)
        except DataError as error:  # too long: the next one may do
            say(f"{error}\n")


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .jsonl file, or of a text file, a prompt a line; empty lines are skipped. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read prompts from {path}: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip() and path.suffix == ".jsonl":
            try:
                prompts.append(json.loads(line)["prompt"])
            except (ValueError, KeyError, TypeError):
                prompts.append(None)
            if not isinstance(prompts[-1], str):
                raise DataError(f'{path}:{number}: not a JSON object with "prompt" and its text')
        elif line.strip():
            prompts.append(line.rstrip("\r"))
    if not prompts:
        raise DataError(f"{path} holds no prompt")
    return prompts


def ask() -> Iterator[str]:
    """Prompts typed into the first rank's terminal, until end of file."""
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


def show(generator: Generator, prompts: list[str], arguments: argparse.Namespace, settings: GenerationConfig) -> None:
    """Generate and print: one completion as it comes, several when all are there."""
    inputs, around, rest = prompts, {}, ""
    if arguments.suffix is not None:
        rest, around = arguments.suffix, {"suffix": arguments.suffix}
        inputs = [generator.fim_prompt(prompt, rest) for prompt in prompts]
    if arguments.instruction is not None:
        around = {"instruction": arguments.instruction}
        asked = [edit_messages(arguments.instruction, prompt) for prompt in prompts]
        inputs = [chat_prompt(generator.tokenizer, messages) for messages in asked]
    # An edited text stands for itself.
    shown = prompts if arguments.instruction is None else [""] * len(prompts)
    if len(prompts) == 1 and not arguments.json:
        unsaid = shown[0]  # until the first text is there, since a prompt may be refused
        for _, text in generator.stream(inputs, settings):
            say(unsaid + text)
            unsaid = ""
        say(f"{unsaid}{rest}\n")
        return
    for prompt, before, completion in zip(prompts, shown, generator.generate(inputs, settings), strict=True):
        if arguments.json:
            say(json.dumps({"prompt": prompt} | around | asdict(completion), ensure_ascii=False) + "\n")
        else:
            say(f"{before}{completion.text}{rest}\n{'-' * 40}\n")


def say(text: str) -> None:
    """Write to the standard output at once, on the first rank."""
    if env.rank() == 0:
        print(text, end="", flush=True)


if __name__ == "__main__":
    run_tool(main)
