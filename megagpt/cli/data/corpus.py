"""`megagpt data corpus`."""

from typing import TYPE_CHECKING, Any

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.data.corpus.build import Result
    from megagpt.data.corpus.options import Slurm


def number(name: str, default: float, text: str) -> options.Decorator:
    """An option for a number."""
    return click.option(name, type=type(default), default=default, show_default=True, help=text)


limits = options.together(
    number("--max-bytes", 1_000_000, "Size of the largest file."),
    number("--max-mean-line", 100.0, "Mean line length, in characters."),
    number("--max-line", 1000, "Length of the longest line, in characters."),
    number("--min-alphanumeric", 0.25, "Share of letters and digits."),
    number("--generated-lines", 5, "First lines that are searched for marks of generated code; 0: none."),
)
"""Thresholds of the rules; the fields of rules.Limits."""

slurm = options.together(
    click.option("--slurm-partition", help="Submit the work there instead of doing it here."),
    click.option("--slurm-time", default="20:00:00", show_default=True, help="Limit for each job."),
    number("--slurm-tasks", 100, "Tasks that run at a time."),
    number("--slurm-memory-gb", 4, "Memory for each task."),
    click.option("--slurm-option", multiple=True, metavar="NAME=VALUE", help="Another of sbatch; may be repeated."),
)
"""How to run on a cluster."""


@click.command(
    "corpus", cls=Command, goes_on=True, short_help="Make a corpus of source code: filtered and deduplicated."
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--output", required=True, metavar="FOLDER", help="Where the corpus goes.")
@options.words("--languages", required=True, metavar="NAME,...", help="Languages to keep.")
@number("--workers", 1, "Processes.")
@limits
@options.words("--licences", metavar="SPDX,...", help="Allowed licences, or `permissive` [default: any, and none].")
@click.option("--decontaminate", multiple=True, metavar="FILE", help="Evaluation data, jsonl(.gz); may be repeated.")
@number("--ngram", 13, "Words in a row that no file may share with evaluation data.")
@number("--minhash-words", 5, "Words in the runs that near-duplicates are compared by.")
@number("--minhash-buckets", 14, "Chances to be found alike.")
@number("--minhash-hashes", 8, "Hashes that must agree in a bucket.")
@click.option(
    "--compression", type=click.Choice(("zst", "gz", "none")), default="zst", show_default=True, help="Of the shards."
)
@number("--samples", 20, "Files that the report shows for each rule.")
@number("--shard-mb", 16.0, "Source code in a shard, in MB.")
@slurm
def command(inputs: tuple[str, ...], output: str, workers: int, **settings: Any) -> None:
    """Make a corpus of source code: filtered, free of evaluation data and secrets, and without duplicates.

    \b
    Examples
      megagpt data corpus src/ checkout/ sources.tar.gz --languages python --output data/code
      megagpt data corpus repos/ --languages c,c++ --licences permissive --workers 16 --output data/c \\
          --decontaminate HumanEval.jsonl.gz --decontaminate mbpp.jsonl
      megagpt data corpus /shared/repos --languages python --output /shared/code --slurm-partition cpu

    Inputs are folders, git checkouts (their tracked files) and archives (zip, tar, tar.gz, tar.bz2, tar.xz; nothing is
    extracted), also inside of folders. The output is FOLDER/*.jsonl.zst with text, path, language and licence, for
    `megagpt data preprocess`, and report.md and report.json, which account for every file of the input. An interrupted
    run goes on where it stopped when the command is given again. docs/corpus.md explains the rules.
    """
    from megagpt.data.corpus.build import build
    from megagpt.data.corpus.options import Options
    from megagpt.data.corpus.rules import Limits

    cluster = slurm_of(**{name: settings.pop(name) for name in list(settings) if name.startswith("slurm_")})
    thresholds = Limits(**{name: settings.pop(name) for name in Limits.__dataclass_fields__})
    result = build(inputs, output, Options(limits=thresholds, **settings), workers, cluster)
    if result.report is not None:
        show(result, output)


def slurm_of(
    slurm_partition: str | None,
    slurm_time: str,
    slurm_tasks: int,
    slurm_memory_gb: int,
    slurm_option: tuple[str, ...],
) -> "Slurm | None":
    """How to run on Slurm, where that is asked for."""
    from megagpt.data.corpus.options import Slurm

    if not slurm_partition:
        return None
    if wrong := [item for item in slurm_option if "=" not in item]:
        raise ConfigError(f"--slurm-option {wrong[0]}: give it as NAME=VALUE, for example account=me")
    more = dict(item.lstrip("-").split("=", 1) for item in slurm_option)
    return Slurm(partition=slurm_partition, time=slurm_time, tasks=slurm_tasks, memory_gb=slurm_memory_gb, sbatch=more)


def show(result: "Result", output: str) -> None:
    """Print what each rule dropped, and how fast."""
    found, corpus = result.report["input"], result.report["corpus"]
    click.echo(f"{'rule':20} {'files':>10} {'share':>8} {'MB':>12}")
    rows = [("input", found["files"], found["bytes"])]
    rows += [(rule, count["files"], count["bytes"]) for rule, count in result.report["dropped"].items()]
    rows += [("kept", corpus["documents"], corpus["source_bytes"])]
    for name, files, size in rows:
        click.echo(f"{name:20} {files:10,} {files / found['files']:8.2%} {size / 1e6:12,.3f}")
    if result.mb_per_second_core:
        click.echo(f"{result.mb_per_second_core:.2f} MB/s a core, {result.mb_per_cpu_second:.2f} MB a CPU second")
    click.echo(f"{output}: {corpus['documents']:,} documents; report.md has samples of what was dropped")
