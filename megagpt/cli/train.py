"""`megagpt train`: compose the configuration, check it, run the stage.

Heavy packages are imported only after the configuration is checked, so that a misspelt key is reported in a second.
"""

from pathlib import Path

import click

from megagpt import env
from megagpt.cli import options
from megagpt.cli.group import RankedCommand, reported_by_first_rank
from megagpt.errors import ConfigError


class TrainCommand(RankedCommand):
    """A command whose help is the help of the configuration."""

    def get_help(self, ctx: click.Context) -> str:
        """The help of every group and every key."""
        from megagpt.config import help

        return help.full()


def show_section(ctx: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Print the help of all sections, or of one."""
    if name is None or ctx.resilient_parsing:
        return
    from megagpt.config import help

    click.echo(help.section(name) if name else help.full(), nl=False)
    ctx.exit()


@click.command(
    "train",
    cls=TrainCommand,
    goes_on=True,
    add_help_option=False,
    short_help="Train a model: pretraining and every later stage.",
)
@click.option(
    "-h",
    "--help",
    is_flag=False,
    flag_value="",
    is_eager=True,
    expose_value=False,
    callback=show_section,
    metavar="[SECTION]",
    help="Show every key, or those of one section.",
)
@click.option("--config", "only_config", is_flag=True, help="Print the whole configuration and run nothing.")
@click.option(
    "--base",
    type=options.FILE,
    metavar="RUN",
    help="Start from a run or a converted model: its model.*, data.tokenizer and checkpoint.load, before OVERRIDES.",
)
@click.argument("overrides", nargs=-1)
def command(overrides: tuple[str, ...], only_config: bool, base: Path | None) -> int:
    """Run the stage that the configuration names; OVERRIDES are group=option and key=value."""
    from megagpt.cli.base_run import base_overrides
    from megagpt.config.inputs import check_inputs
    from megagpt.config.load import load, to_yaml
    from megagpt.config.rules import check

    try:
        config = load([*(base_overrides(base) if base else ()), *overrides])
        if only_config:
            click.echo(to_yaml(config), nl=False)
            return 0
        check(config, env.world_size())
    except ConfigError as error:
        if env.rank() == 0:  # all ranks have the same configuration, so only rank 0 reports the error
            raise
        return reported_by_first_rank(error.exit_code)
    if env.rank() == 0:  # the stage itself finds problems of other ranks
        check_inputs(config)
        if config.stage.tasks.names:
            from megagpt.stages import tasks

            tasks.check(config)
    from megagpt.stages import run

    return run(config)
