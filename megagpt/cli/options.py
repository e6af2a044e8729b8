"""Arguments that several commands share. Defaults are those of the library, which a test compares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class HomePath(click.Path):
    """A path, in which `~` is the home folder: no shell puts that in behind `--output=`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does."""
        from megagpt.config.home import at_home

        return super().convert(at_home(value) if isinstance(value, str) else value, param, ctx)


FILE = HomePath(path_type=Path)
"""A path of a file or folder; whoever opens it says what is wrong with it."""

INPUT = HomePath()
"""The same as text: a path as it was typed, or a pattern that several match (a glob)."""

Decorator = Callable[[Any], Any]


def together(*options: Decorator) -> Decorator:
    """One decorator for several options, which the help shows in the order given."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def words(name: str, **settings: Any) -> Decorator:
    """An option for a list of words: `--kinds copy,reverse`, or the option repeated; None where it is not given."""

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
    "--like", type=FILE, help="config.yaml or checkpoint of megagpt with the model's shape, where a format has none."
)

tokenizer = click.option(
    "--tokenizer", type=FILE, required=True, help="tokenizer.json, as made by `megagpt data tokenizer`."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

seed = click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same result.")

layout = together(
    click.option("--tensor-parallel-size", type=int, default=1, help="Ranks that share every layer."),
    click.option("--pipeline-parallel-size", type=int, default=1, help="Pipeline stages of layers."),
)
"""How ranks share a model."""

embedding_layout = together(
    click.option(
        "--micro-batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts at a time."
    ),
    layout,
)
"""How ranks embed texts."""

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
"""What is read in files of text."""

rejection = together(
    click.option("--max-rejected", type=int, default=0, show_default=True, help="Malformed records to tolerate."),
    click.option("--max-record-mb", type=float, default=32, show_default=True, help="Longest record, in MB."),
)
"""Which records are refused."""

max_mb = click.option("--max-mb", type=float, help="Read about this many MB, spread evenly over the inputs.")


def sampling(max_new_tokens: int) -> Decorator:
    """How a model writes; `temperature` reads what the first two give."""
    return together(
        click.option("--temperature", type=float, help="Of sampling [default: 1.0]."),
        click.option("--greedy", is_flag=True, help="Take the likeliest token."),
        click.option("--top-p", type=float, default=1.0, help="Sample from the likeliest tokens of this probability."),
        click.option(
            "--max-new-tokens", type=int, default=max_new_tokens, show_default=True, help="Tokens to generate."
        ),
        seed,
    )


def temperature(given: float | None, greedy: bool) -> float:
    """The temperature that `--temperature` and `--greedy` ask for. Raises UsageError when both are given."""
    if greedy and given is not None:
        raise click.UsageError("--greedy takes the likeliest token: leave --temperature out")
    return 0.0 if greedy else 1.0 if given is None else given
