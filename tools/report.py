"""Turn one or several runs into one HTML page with interactive plots that opens offline.

python tools/report.py runs/demo
python tools/report.py runs/a runs/b --output comparison.html
"""

import argparse
from pathlib import Path

from megagpt.evaluate.report import build_report
from megagpt.evaluate.runs import read_runs
from megagpt.log import run_tool
from megagpt.train.metrics import replace_file


def main() -> None:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="+", type=Path, help="run folder; several are overlaid and compared")
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write (default: report.html in the run folder; of several runs, beside them)",
    )
    arguments = parser.parse_args()
    runs = read_runs(arguments.run_dir)
    first = arguments.run_dir[0]
    output = arguments.output or (first / "report.html" if len(runs) == 1 else first.parent / "comparison.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, build_report(runs))
    print(output)


if __name__ == "__main__":
    run_tool(main)
