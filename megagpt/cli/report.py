"""`megagpt report`."""

from pathlib import Path
from urllib.parse import urlsplit

import click

from megagpt.cli import options
from megagpt.cli.group import Command
from megagpt.errors import ConfigError


@click.command("report", cls=Command, short_help="Turn runs, results or a corpus into one HTML page with plots.")
@click.argument("run_dirs", nargs=-1, required=True, type=options.FILE, metavar="RUN_DIR...")
@click.option(
    "--output",
    type=options.FILE,
    help="File to write [default: report.html in the run folder; for several runs, comparison.html beside them].",
)
@click.option(
    "--link",
    "links",
    multiple=True,
    metavar="TEXT=ADDRESS",
    help="Further page that the page of runs links to: a path from its folder, or http(s)://...; may be repeated.",
)
def command(run_dirs: tuple[Path, ...], output: Path | None, links: tuple[str, ...]) -> None:
    """Turn one or several runs into one HTML page with interactive plots that opens offline.

    Several runs are overlaid and compared. A folder with report.json is a corpus, and one with result.json an
    evaluation in context. Two evaluations are also compared example by example, in a table.

    \b
    Examples
      megagpt report runs/demo
      megagpt report runs/a runs/b --output comparison.html
      megagpt report runs/demo runs/embed --output runs/all.html --link 'map of functions=embed/map.html'
      megagpt report runs/a/in_context runs/b/in_context
      megagpt report data/web
    """
    from megagpt.evaluate.in_context.compare import as_text
    from megagpt.evaluate.in_context.results import is_result
    from megagpt.evaluate.in_context_page import write_in_context_page
    from megagpt.evaluate.report import build_report
    from megagpt.evaluate.runs import read_runs
    from megagpt.train.metrics import replace_file

    corpora = [folder for folder in run_dirs if (folder / "report.json").exists()]
    results = [folder for folder in run_dirs if is_result(folder)]
    if links and (corpora or results):
        raise ConfigError(f"--link is for the page of runs; {(corpora + results)[0]} is not a run")
    if corpora:
        if len(run_dirs) > 1:
            raise ConfigError(f"{corpora[0]} is a corpus: give it alone")
        from megagpt.evaluate.corpus_page import write_corpus_page  # it needs megagpt[corpora]; a run's page does not

        click.echo(write_corpus_page(corpora[0], output))
        return
    if results:
        if others := [folder for folder in run_dirs if folder not in results]:
            raise ConfigError(f"{results[0]} holds results of an evaluation, {others[0]} does not: report them apart")
        page, compared = write_in_context_page(run_dirs, output)
        if compared:
            click.echo(as_text(compared))
        click.echo(page)
        return
    linked = [parse_link(text) for text in links]
    runs = read_runs(run_dirs)
    first = run_dirs[0]
    output = output or (first / "report.html" if len(runs) == 1 else first.parent / "comparison.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, build_report(runs, linked))
    click.echo(output)


def parse_link(text: str) -> tuple[str, str]:
    """Text and address of an option --link. Raises ConfigError for an address that is neither a path nor http(s)."""
    name, _, address = text.partition("=")
    scheme = urlsplit(address).scheme
    if not name or not address or scheme not in ("", "http", "https"):
        raise ConfigError(f"--link {text!r}: write TEXT=ADDRESS, where the address is a path or begins with http(s)://")
    return name, address
