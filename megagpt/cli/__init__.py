"""`megagpt`, the command. A subcommand is a module of this package, which is imported when it is called.

Modules import heavy packages (torch, pydantic, transformers) inside their functions, so that every `--help` appears at
once; tests/cli/test_help.py checks this.
"""

import click

from megagpt import __version__, env
from megagpt.cli.group import Group, reported_by_first_rank
from megagpt.log import run_tool

COMMANDS = (
    "train",
    "generate",
    "chat",
    "serve",
    "score",
    "embed",
    "search",
    "evaluate",
    "plan",
    "report",
    "data",
    "checkpoint",
)

command = Group(
    "megagpt",
    COMMANDS,
    package="megagpt.cli",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="""Trains the ChatGPT family, from one laptop core to a thousand GPUs.

    \b
    Examples
      megagpt data tokenizer corpus.jsonl --vocab-size 50257 --output data/tokenizer.json
      megagpt data preprocess corpus.jsonl --tokenizer data/tokenizer.json --output data/web
      megagpt train experiment=pretrain_125m 'data.corpora=[{path:data/web}]'
      megagpt generate --checkpoint runs/pretrain_125m --prompt "The history of"
      megagpt COMMAND --help

    Completion of commands and options in bash (also zsh, fish), in ~/.bashrc:

    \b
      eval "$(_MEGAGPT_COMPLETE=bash_source megagpt)"
    """,
)
click.version_option(__version__, prog_name="megagpt")(command)


def run(arguments: list[str] | None = None) -> int:
    """Run a command line, by default this process's, and return its exit code. Raises MegaGPTError."""
    try:
        return command.main(arguments, prog_name="megagpt", standalone_mode=False) or 0
    except click.ClickException as error:
        if env.rank() != 0:  # all ranks have the same command line, so only rank 0 reports the error
            return reported_by_first_rank(error.exit_code)
        error.show()
        return error.exit_code


def main() -> None:
    """The installed command. Runs it and ends the process with its exit code."""
    run_tool(run)
