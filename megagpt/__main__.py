"""The one entry for every stage: compose the configuration, check it, run the stage.

    python -m megagpt experiment=demo
    torchrun --nproc-per-node 2 -m megagpt experiment=demo parallel=tensor
    python -m megagpt --help optim

Nothing heavy is imported before the configuration is known to be right, so that a misspelt key costs a second.
"""

import argparse
import sys

from megagpt import env
from megagpt.errors import ConfigError
from megagpt.log import run_tool


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code. Raises MegaGPTError."""
    from megagpt.config.load import load, to_yaml
    from megagpt.config.rules import check

    parser = argparse.ArgumentParser("python -m megagpt", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", nargs="?", const="")
    parser.add_argument("--config", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(arguments)
    if options.help is not None:
        from megagpt.config import help

        sys.stdout.write(help.section(options.help) if options.help else help.full())
        return 0
    try:
        config = load(options.overrides)
        if options.config:
            sys.stdout.write(to_yaml(config))
            return 0
        check(config, env.world_size())
    except ConfigError as error:
        if env.rank() == 0:  # every rank reads the same configuration: the first says it for all
            raise
        return error.exit_code
    from megagpt.stages import run

    return run(config)


if __name__ == "__main__":
    run_tool(main)
