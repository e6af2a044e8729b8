"""`megagpt report`."""

from pathlib import Path

import click

from megagpt.cli import options
from megagpt.cli.group import Command


@click.command("report", cls=Command, short_help="Turn runs into one HTML page with interactive plots.")
@click.argument("run_dirs", nargs=-1, required=True, type=options.FILE, metavar="RUN_DIR...")
@click.option(
    "--output",
    type=options.FILE,
    help="File to write [default: report.html in the run folder; of several runs, comparison.html beside them].",
)
def command(run_dirs: tuple[Path, ...], output: Path | None) -> None:
    """Turn one or several runs into one HTML page with interactive plots that opens offline.

    Several runs are overlaid and compared.

    \b
    Examples
      megagpt report runs/demo
      megagpt report runs/a runs/b --output comparison.html
    """
    from megagpt.evaluate.report import build_report
    from megagpt.evaluate.runs import read_runs
    from megagpt.train.metrics import replace_file

    runs = read_runs(run_dirs)
    first = run_dirs[0]
    output = output or (first / "report.html" if len(runs) == 1 else first.parent / "comparison.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, build_report(runs))
    click.echo(output)
