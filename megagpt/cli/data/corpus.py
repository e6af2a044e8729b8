"""`megagpt data corpus`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from megagpt.cli.data import corpus_options as options
from megagpt.cli.group import Command
from megagpt.cli.options import INPUT

if TYPE_CHECKING:
    from megagpt.data.corpus.cluster import Ray, Slurm
    from megagpt.data.corpus.job import Result


@click.command(
    "corpus", cls=Command, goes_on=True, short_help="Make a corpus of text or code: filtered and deduplicated."
)
@click.argument("inputs", nargs=-1, type=INPUT, required=True, metavar="INPUT...")
@click.option("--kind", type=click.Choice(options.KINDS), required=True, help="What the inputs are.")
@click.option("--output", type=INPUT, required=True, metavar="FOLDER", help="Where the corpus goes.")
@options.both
@options.text
@options.code
@options.clusters
@click.pass_context
def command(ctx: click.Context, inputs: tuple[str, ...], kind: str, output: str, workers: int, **settings: Any) -> None:
    """Make a corpus of text or source code: filtered, without duplicates, and free of evaluation data.

    \b
    Examples
      megagpt data corpus crawl/*.warc.wet.gz --kind web --recipe fineweb --workers 16 --output data/web
      megagpt data corpus enwiki.xml.bz2 --kind wiki --recipe gpt3 --set quality=null --output data/wiki
      megagpt data corpus crawl/ --kind web --recipe gpt3 --quality-model model --against data/wiki \\
          --decontaminate lambada.jsonl --output data/web --slurm-partition cpu
      megagpt data corpus repos/ --kind code --languages c,c++ --licences permissive --output data/c

    \b
    Kinds
      web        WARC and WET (.gz), parquet, jsonl and HTML
      wiki       MediaWiki's dumps (.xml, .bz2) and jsonl
      books      plain text, EPUB and jsonl
      articles   parquet, jsonl, plain text and HTML
      code       folders, git checkouts (their tracked files) and archives (zip, tar; nothing is extracted)

    The output is FOLDER/*.jsonl.zst for `megagpt data preprocess`, and report.html, report.md and report.json, which
    count every record of the input. After an interruption, the same command goes on where it stopped.
    docs/text_corpora.md and docs/code_corpora.md explain the steps.
    """
    options.refuse_foreign(ctx, kind)
    cluster = options.cluster_of(**options.taken(settings, "slurm_", "ray"))
    of_kind = {name: settings.pop(name) for name in options.OF_KIND["code" if kind == "code" else "text"]}
    both = {name: settings[name] for name in ("decontaminate", "compression", "samples")}
    if settings["shard_mb"] is not None:
        both["shard_mb"] = settings["shard_mb"]
    make = _code if kind == "code" else _text
    result = make(kind, inputs, output, both | of_kind, workers, cluster)
    if result.report is not None:
        from megagpt.evaluate.corpus_page import write_corpus_page

        page = write_corpus_page(Path(output))
        show(result, output)
        click.echo(page)


def _code(
    kind: str,
    inputs: tuple[str, ...],
    output: str,
    settings: dict[str, Any],
    workers: int,
    cluster: "Slurm | Ray | None",
) -> "Result":
    from megagpt.data.corpus.code.build import build
    from megagpt.data.corpus.code.options import Options
    from megagpt.data.corpus.code.rules import Limits

    thresholds = Limits(**{name: settings.pop(name) for name in Limits.__dataclass_fields__})
    return build(inputs, output, Options(limits=thresholds, **settings), workers, cluster)


def _text(
    kind: str,
    inputs: tuple[str, ...],
    output: str,
    settings: dict[str, Any],
    workers: int,
    cluster: "Slurm | Ray | None",
) -> "Result":
    from megagpt.data.corpus.job import needed

    with needed("making a corpus of text"):
        from megagpt.data.corpus.text.build import build
        from megagpt.data.corpus.text.options import Options
        from megagpt.data.corpus.text.recipe import load_recipe

    name, overrides, model = (settings.pop(key) for key in ("recipe", "overrides", "quality_model"))
    model = [f"quality.model={model}"] if model else []
    return build(inputs, output, Options(kind, load_recipe(name, [*overrides, *model]), **settings), workers, cluster)


def show(result: "Result", output: str) -> None:
    """Print the numbers of dropped and kept items by rule, and the speed."""
    found, corpus = result.report["input"], result.report["corpus"]
    what = "files" if "files" in found else "documents"
    click.echo(f"{'rule':20} {what:>10} {'share':>8} {'MB':>12}")
    rows = [("input", found[what], found["bytes"])]
    rows += [(rule, count[what], count["bytes"]) for rule, count in result.report["dropped"].items()]
    rows += [("kept", corpus["documents"], corpus["source_bytes"])]
    for name, count, size in rows:
        click.echo(f"{name:20} {count:10,} {count / max(1, found[what]):8.2%} {size / 1e6:12,.3f}")
    if unread := result.report.get("unread_fields"):
        from megagpt.data.unread import described

        click.echo(f"fields that are not read, with their records: {described(unread)}")
    if result.mb_per_second_core:
        click.echo(f"{result.mb_per_second_core:.2f} MB/s per core, {result.mb_per_cpu_second:.2f} MB per CPU second")
    click.echo(f"{output}: {corpus['documents']:,} documents; report.md has samples of dropped documents")
