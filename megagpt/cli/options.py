"""Options that several commands share. Their defaults equal the library's; a test compares them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class HomePath(click.Path):
    """A path in which `~` is the home folder. Shells do not replace it in `--output=~/file`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert as click does, after replacing `~`."""
        from megagpt.config.home import at_home

        return super().convert(at_home(value) if isinstance(value, str) else value, param, ctx)


FILE = HomePath(path_type=Path)
"""A path of a file or folder. The code that opens it checks it."""

INPUT = HomePath()
"""A path as text, or a pattern that matches several paths (a glob)."""

Decorator = Callable[[Any], Any]


def together(*options: Decorator) -> Decorator:
    """One decorator for several options. The help shows them in the order given."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def words(name: str, **settings: Any) -> Decorator:
    """An option for a list of words: `--kinds copy,reverse`, or the option repeated; None if it is not given."""

    def split(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...] | None:
        return tuple(word for text in given for word in text.replace(",", " ").split()) or None

    return click.option(name, multiple=True, callback=split, **settings)


def inputs(*names: str, help: str) -> Decorator:
    """A required option for inputs of text, which may be repeated."""
    return click.option(
        *names, type=INPUT, multiple=True, required=True, metavar="INPUT", help=f"{help}; may be repeated."
    )


checkpoint = click.option(
    "--checkpoint", type=FILE, required=True, help="Run folder (its newest checkpoint) or one checkpoint."
)

like = click.option(
    "--like", type=FILE, help="config.yaml or checkpoint of megagpt with the model's shape, if the format has none."
)

tokenizer = click.option(
    "--tokenizer", type=FILE, required=True, help="tokenizer.json, for example from `megagpt data tokenizer`."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

seed = click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same result.")

layout = together(
    click.option("--tensor-parallel-size", type=int, default=1, help="Ranks that share every layer."),
    click.option("--pipeline-parallel-size", type=int, default=1, help="Pipeline stages of layers."),
)
"""Options for the division of a model among ranks."""

embedding_layout = together(
    click.option(
        "--micro-batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts at a time."
    ),
    layout,
)
"""Options for embedding on several ranks."""

dimensions = click.option(
    "--dimensions",
    type=click.IntRange(min=1),
    help="Keep the first N numbers of every vector, made length 1 again [default: all].",
)

top = click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="Documents to show, the most similar ones."
)

index = click.argument("folder", type=FILE, metavar="INDEX")
"""The folder of an index of `megagpt search index`."""

text_files = together(
    click.option("--key", default="text", show_default=True, help="Key or column of the text."),
    click.option(
        "--pattern",
        "patterns",
        multiple=True,
        help="Names of the files to take from folders; may be repeated [default: *.jsonl, *.parquet and *.txt, also "
        "compressed]",
    ),
)
"""Options for reading files of text."""

rejection = together(
    click.option("--max-rejected", type=int, default=0, show_default=True, help="Malformed records to tolerate."),
    click.option("--max-record-mb", type=float, default=32, show_default=True, help="Longest record, in MB."),
)
"""Options for malformed records."""

max_mb = click.option("--max-mb", type=float, help="Read about this many MB, spread evenly over the inputs.")


def sampling(max_new_tokens: int) -> Decorator:
    """Options for sampling. The function `temperature` combines the first two."""
    return together(
        click.option("--temperature", type=float, help="Temperature of sampling [default: 1.0]."),
        click.option("--greedy", is_flag=True, help="Take the likeliest token."),
        click.option("--top-p", type=float, default=1.0, help="Sample from the likeliest tokens of this probability."),
        click.option(
            "--max-new-tokens", type=int, default=max_new_tokens, show_default=True, help="Tokens to generate."
        ),
        seed,
    )


def temperature(given: float | None, greedy: bool) -> float:
    """The temperature by `--temperature` and `--greedy`. Raises UsageError when both are given."""
    if greedy and given is not None:
        raise click.UsageError("--greedy takes the likeliest token: leave --temperature out")
    return 0.0 if greedy else 1.0 if given is None else given
