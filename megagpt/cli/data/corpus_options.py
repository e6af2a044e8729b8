"""Options of `megagpt data corpus`: for every kind of corpus, for code, for text, and for clusters."""

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from megagpt.cli import options
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.data.corpus.cluster import Ray, Slurm

KINDS = ("web", "wiki", "books", "articles", "code")


def number(name: str, default: float, text: str) -> options.Decorator:
    """An option for a number."""
    return click.option(name, type=type(default), default=default, show_default=True, help=text)


def file(name: str, text: str) -> options.Decorator:
    """An option for files, which may be repeated."""
    return click.option(name, type=options.INPUT, multiple=True, metavar="FILE", help=f"{text}; may be repeated.")


limits = options.together(
    number("--max-bytes", 1_000_000, "Size of the largest file."),
    number("--max-mean-line", 100.0, "Mean line length, in characters."),
    number("--max-line", 1000, "Length of the longest line, in characters."),
    number("--min-alphanumeric", 0.25, "Share of letters and digits."),
    number("--generated-lines", 5, "First lines that are searched for marks of generated code; 0: none."),
)
"""Thresholds of the rules about code; the fields of rules.Limits."""

code = options.together(
    options.words("--languages", metavar="NAME,...", help="Programming languages to keep; required for code."),
    limits,
    options.words("--licences", metavar="SPDX,...", help="Allowed licences, or `permissive` [default: any, and none]."),
    number("--ngram", 13, "Words in a row that no file may share with evaluation data."),
    number("--minhash-words", 5, "Words per run that MinHash compares."),
    number("--minhash-buckets", 14, "Buckets of MinHash; near-duplicates agree in at least one."),
    number("--minhash-hashes", 8, "Hashes that must agree in a bucket."),
)
"""Options for code."""

text = options.together(
    click.option(
        "--recipe",
        type=options.INPUT,
        metavar="NAME|FILE",
        help="gpt3, c4, gopher, fineweb, dclm, or a YAML file; required for text.",
    ),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: c4.min_words=5."),
    click.option("--quality-model", type=options.INPUT, metavar="FOLDER", help="Made by `megagpt data quality train`."),
    file("--links", "Links with scores (jsonl, tsv, csv): only pages with a good one are kept"),
    number("--min-link-score", 3.0, "Score of a good link; 3 is WebText's."),
    click.option(
        "--against",
        type=options.INPUT,
        multiple=True,
        metavar="CORPUS",
        help="Remove copies of a corpus made before; may be repeated.",
    ),
    click.option("--key", default="text", show_default=True, help="Key or column of the text in jsonl and parquet."),
    click.option(
        "--extractor",
        type=click.Choice(("trafilatura", "resiliparse")),
        default="trafilatura",
        show_default=True,
        help="Library that extracts text from HTML.",
    ),
    number("--max-record-mb", 32.0, "Longest record, in MB."),
)
"""Options for text."""

both = options.together(
    number("--workers", 1, "Processes."),
    file("--decontaminate", "Evaluation data to keep out"),
    click.option(
        "--compression",
        type=click.Choice(("zst", "gz", "none")),
        default="zst",
        show_default=True,
        help="Compression of the shards.",
    ),
    number("--samples", 20, "Files or documents that the report shows for each rule."),
    click.option("--shard-mb", type=float, help="Input per shard, in MB [default: 16 of code, 128 of other files]."),
)
"""Options for every kind of corpus."""

clusters = options.together(
    click.option("--slurm-partition", help="Submit the work to this partition of Slurm instead of doing it here."),
    click.option("--slurm-time", default="20:00:00", show_default=True, help="Time limit of each job."),
    number("--slurm-tasks", 100, "Tasks that run at the same time."),
    number("--slurm-memory-gb", 4, "Memory for each task."),
    click.option("--slurm-option", multiple=True, metavar="NAME=VALUE", help="An option of sbatch; may be repeated."),
    click.option("--ray", metavar="ADDRESS", help="Do the work on a Ray cluster; `local` starts one here."),
    number("--ray-memory-gb", 0.0, "Memory to reserve for each task; 0: none."),
)
"""Options for clusters."""


def _names(decorator: options.Decorator) -> list[str]:
    command = click.command()(decorator(lambda **_: None))
    return [parameter.name for parameter in command.params]


OF_KIND = {"code": _names(code), "text": _names(text)}
"""Names of the options that belong to some kinds only."""


def refuse_foreign(ctx: click.Context, kind: str) -> None:
    """Raise UsageError for an option that was given although it does not belong to `kind`."""
    foreign = OF_KIND["text" if kind == "code" else "code"]
    for parameter in ctx.command.params:
        if parameter.name in foreign and ctx.get_parameter_source(parameter.name) == ParameterSource.COMMANDLINE:
            kinds = " or ".join(KINDS[:-1]) if kind == "code" else "code"
            raise click.UsageError(f"{parameter.opts[0]} is an option of --kind {kinds}, not of {kind}")
    for name, needed in (("languages", kind == "code"), ("recipe", kind != "code")):
        if needed and not ctx.params[name]:
            raise click.UsageError(f"Missing option '--{name}', which --kind {kind} needs")


def taken(settings: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    """Remove the `settings` whose names begin with one of the prefixes, and return them."""
    return {name: settings.pop(name) for name in list(settings) if name.startswith(prefixes)}


def cluster_of(
    slurm_partition: str | None,
    slurm_time: str,
    slurm_tasks: int,
    slurm_memory_gb: int,
    slurm_option: tuple[str, ...],
    ray: str | None,
    ray_memory_gb: float,
) -> "Slurm | Ray | None":
    """The settings of the cluster, if the options ask for one. Raises ConfigError for contradictory options."""
    from megagpt.data.corpus.cluster import Ray, Slurm

    if slurm_partition and ray:
        raise ConfigError("--slurm-partition and --ray are two clusters: give one of them")
    if ray:
        return Ray(ray, ray_memory_gb)
    if not slurm_partition:
        return None
    if wrong := [item for item in slurm_option if "=" not in item]:
        raise ConfigError(f"--slurm-option {wrong[0]}: give it as NAME=VALUE, for example account=me")
    more = dict(item.lstrip("-").split("=", 1) for item in slurm_option)
    return Slurm(partition=slurm_partition, time=slurm_time, tasks=slurm_tasks, memory_gb=slurm_memory_gb, sbatch=more)
