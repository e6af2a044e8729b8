"""`python -m megagpt key=value` and `torchrun -m megagpt key=value` do the same as `megagpt train key=value`.

python -m megagpt experiment=demo
torchrun --nproc-per-node 2 -m megagpt experiment=demo parallel=tensor
python -m megagpt --help optim
"""

import sys

from megagpt import cli
from megagpt.log import run_tool


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code. Raises MegaGPTError."""
    return cli.run(["train", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    run_tool(main)
