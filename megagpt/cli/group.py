"""Groups that import a subcommand only when it is called, and commands that run on several ranks."""

import time
from importlib import import_module
from typing import Any

import click

from megagpt import env
from megagpt.errors import Interrupted

HEAD_START_SECONDS = 5.0
"""Time for rank 0 to report an error that occurs on all ranks."""


def reported_by_first_rank(exit_code: int) -> int:
    """The exit code of a rank other than 0, for an error that occurs on all ranks and that rank 0 reports.

    It waits before it returns, because the launcher kills all ranks, also rank 0, as soon as one rank ends.
    """
    time.sleep(HEAD_START_SECONDS)
    return exit_code


class Group(click.Group):
    """A group whose subcommands are modules of a package; each has its click command under the name `command`."""

    def __init__(self, name: str, modules: tuple[str, ...], *, package: str, **settings: Any) -> None:
        super().__init__(name, no_args_is_help=True, **settings)
        self.package = package
        self.commands = dict.fromkeys(modules)  # names for click's "did you mean"

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the subcommands, in the order in which people need them."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported now; None for an unknown name."""
        return import_module(f"{self.package}.{cmd_name}").command if cmd_name in self.commands else None


class Command(click.Command):
    """A command that Ctrl-C ends with a one-line message.

    goes_on: whether the same command then goes on where it stopped
    """

    def __init__(self, *arguments: Any, goes_on: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.goes_on = goes_on

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises Interrupted."""
        try:
            return self.start(ctx)
        except KeyboardInterrupt:
            how = ": the same command goes on where it stopped" if self.goes_on else ""
            raise Interrupted(f"interrupted{how}") from None

    def start(self, ctx: click.Context) -> Any:
        """Run the command's function."""
        return super().invoke(ctx)


class RankedCommand(Command):
    """A command that several ranks run together: torchrun starts them, or the command does by `--nproc-per-node N`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(
            click.Option(
                ["--nproc-per-node"],
                type=click.IntRange(min=1),
                metavar="N",
                help="Start N ranks on this machine; torchrun starts them on several.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and keep the arguments for the ranks."""
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)

    def start(self, ctx: click.Context) -> Any:
        """Run the command's function in this process, or in new ranks."""
        ranks = ctx.params.pop("nproc_per_node")
        if ranks in (None, 1) or env.is_rank():
            return super().start(ctx)
        from megagpt.parallel import torchrun

        subcommand = ctx.command_path.split()[1:]
        start = ["--nproc-per-node", str(ranks), "-m", "megagpt.cli", *subcommand]
        code = torchrun.main([*start, *ctx.meta["arguments"]])
        if code == Interrupted.exit_code:
            raise KeyboardInterrupt
        return code
