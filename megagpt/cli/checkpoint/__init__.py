"""`megagpt checkpoint`: look into checkpoints, and convert them."""

from megagpt.cli.group import Group

command = Group(
    "checkpoint",
    ("convert", "inspect"),
    package="megagpt.cli.checkpoint",
    help="""Look into checkpoints, and convert them between formats.

    \b
    Example
      megagpt checkpoint inspect runs/demo
    """,
)
