"""The page about results in context: its charts hold the figures, and nothing that a prompt says can speak in it."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from megagpt import cli
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate.in_context.outcomes import ExampleOutcome, TaskOutcome
from megagpt.evaluate.in_context.published import published
from megagpt.evaluate.in_context.results import write_results
from megagpt.evaluate.in_context_page import write_in_context_page
from megagpt.evaluate.visible import LONGEST, marked

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    "</script><script>console.error('injected')</script><img src=x onerror=\"console.error('injected')\">\x00\u202e"
)

pytest.importorskip("plotly")


def outcome(task: str, shots: int, right: int, n: int = 40, metric: str = "accuracy", **fields) -> TaskOutcome:
    examples = [
        ExampleOutcome(
            str(i), f"{HOSTILE} {shots} {i}", shots, (" a", " b"), (-1.0, -2.0), " a", " a", {metric: float(i < right)}
        )
        for i in range(n)
    ]
    given = {
        "task": task,
        "shots": shots,
        "metrics": {metric: right / n},
        "main_metric": metric,
        "higher_is_better": True,
        "chance": 0.25,
        "examples": examples,
        "notes": [f"note {HOSTILE}"],
    }
    return TaskOutcome(**given | fields)


@pytest.fixture
def make(tmp_path):
    """Writes results of a checkpoint into a folder, and returns that."""

    def call(name, outcomes, run="run", step=10, parameters=1_000_000, protocol="gpt3"):
        checkpoint = {
            "folder": f"runs/{run}/checkpoints/step_{step}",
            "run": run,
            "step": step,
            "tokens": 1000 * step,
            "parameters": parameters,
        }
        folder = tmp_path / name
        write_results(folder, {"protocol": protocol, "checkpoint": checkpoint}, outcomes, work={"seconds": 9.5})
        return folder

    return call


@pytest.fixture
def charts():
    """Makes a page and returns its charts by title, in order, and its HTML."""

    def call(*folders):
        path, _ = write_in_context_page(folders)
        html = path.read_text()
        found = json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', html)[1])
        captions = [unescape(text) for text in re.findall(r"<figcaption>(.*?)<small>", html)]
        return list(zip(captions, found, strict=True)), html

    return call


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.names, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.names += [name for name, _ in attributes]

    def handle_data(self, data):
        self.text.append(data)


def series(chart: dict, name: str) -> dict:
    (found,) = (one for one in chart["series"] if one["name"] == name)
    return found


def test_accuracy_against_shots(make, charts):
    stats = pytest.importorskip("scipy.stats")
    found, html = charts(make("a", [outcome("one", k, 10 + k) for k in (0, 1, 7)], run="mine"))
    ((title, chart),) = found
    assert title == "one"
    line = series(chart, "mine")
    assert line["x"] == [0, 1, 3] and chart["axes"]["xaxis"]["ticktext"] == ["0", "1", "7"]  # log2(1 + shots)
    assert line["y"] == [10 / 40, 11 / 40, 17 / 40]
    expected = [stats.binomtest(right, 40).proportion_ci() for right in (10, 11, 17)]
    assert line["low"] == pytest.approx([one.low for one in expected], abs=1e-9)
    assert line["high"] == pytest.approx([one.high for one in expected], abs=1e-9)
    assert set(series(chart, "chance")["y"]) == {0.25}
    assert "Better than chance</span><strong>1 of 3" in html  # of 17 of 40 the interval begins at 0.27


def test_average_is_over_tasks_that_have_all(make, charts):
    tasks = [outcome("one", 0, 10), outcome("one", 8, 20), outcome("two", 0, 20), outcome("two", 8, 30)]
    others = [outcome("three", 0, 5), outcome("four", 8, 1, metric="f1")]
    found, html = charts(make("a", tasks + others))
    title, chart = found[0]
    line = series(chart, "run")
    assert title == "Average over tasks" and line["y"] == [30 / 80, 50 / 80]
    error = np.sqrt(0.25 * 0.75 / 40 + 0.5 * 0.5 / 40) / 2
    assert line["high"][0] == pytest.approx(30 / 80 + 1.96 * error, abs=1e-4)
    assert "mean of the main metric over one, two, each" in html and "Not in the average: three, four." in html


SUBJECTS = [f"mmlu_{name}" for name in ("anatomy", "astronomy", "marketing", "management", "virology")]


def folded(html: str) -> list[tuple[str, str]]:
    """What is folded: summary and content."""
    return re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", html, re.DOTALL)


def test_a_large_family_is_shown_by_its_average(make, charts):
    subjects = [outcome(name, 5, right) for name, right in zip(SUBJECTS, (10, 12, 14, 16, 18), strict=True)]
    found, html = charts(make("a", [subjects[0], outcome("two", 5, 30), *subjects[1:]]))
    assert [title for title, _ in found] == ["Average over tasks", "Average over mmlu", "two", *SUBJECTS]
    assert series(found[1][1], "run")["y"] == pytest.approx([14 / 40])
    assert series(found[0][1], "run")["y"] == pytest.approx([(70 + 30) / 6 / 40])
    parts = dict(folded(html))
    assert re.findall(r'id="plot(\d)"', parts["mmlu: 5 charts"]) == ["3", "4", "5", "6", "7"]
    tables = html.replace(parts["mmlu: 5 figures"], "")
    assert (
        "mmlu_virology, 5 shots: accuracy" in parts["mmlu: 5 figures"]
        and "mmlu_virology, 5 shots: accuracy" not in tables
    )
    assert "mmlu, 5 shots: average of 5 tasks</th><td>0.35</td>" in tables
    assert "main metric over mmlu (5 tasks), two, each task with equal weight" in html


def test_an_average_of_nothing_right_has_no_interval(make, charts):
    found, html = charts(make("a", [outcome(name, 5, 0) for name in [*SUBJECTS, "two"]]))
    for _, chart in found[:2]:
        assert (series(chart, "run")["y"], series(chart, "run")["low"]) == ([0], [None])
    assert "mmlu, 5 shots: average of 5 tasks</th><td>0</td><td></td>" in html


def test_a_family_alone_has_one_average_and_a_small_one_is_not_folded(make, charts):
    found, _ = charts(make("a", [outcome(name, 5, 10) for name in SUBJECTS]))
    assert [title for title, _ in found] == ["Average over tasks", *SUBJECTS]
    found, html = charts(make("b", [outcome(name, 5, 10) for name in [*SUBJECTS[:4], "two"]]))
    assert [title for title, _ in found] == ["Average over tasks", *SUBJECTS[:4], "two"]
    assert not [summary for summary, _ in folded(html) if summary.startswith("mmlu")]


def test_tasks_with_their_own_many_shots_are_averaged_as_few(make, charts):
    found, _ = charts(
        make("a", [outcome("one", 0, 10), outcome("one", 50, 20), outcome("two", 0, 8), outcome("two", 20, 28)])
    )
    chart = found[0][1]
    assert chart["axes"]["xaxis"]["ticktext"] == ["0", "few"]
    assert series(chart, "run")["y"] == [18 / 80, 48 / 80]
    assert series(chart, "run")["x"] == [0, pytest.approx(np.log2(36))]


def test_published_figures_are_behind_ours(make, charts):
    found, html = charts(
        make("a", [outcome("lambada", 0, 10)]), make("b", [outcome("lambada", 0, 12)], "big", 5, 3_000_000)
    )
    by_shots, by_size = (chart for title, chart in found if title == "lambada")
    assert series(by_shots, "GPT-3 175B")["y"] == pytest.approx([0.762, 0.725, 0.864])
    assert series(by_shots, "GPT-3 760M")["y"] == pytest.approx([0.604, 0.632])  # copies differ on its one-shot figure
    few = series(by_size, "GPT-3 few-shot")
    assert (few["x"][0], few["y"][0], few["x"][-1], few["y"][-1]) == pytest.approx((125e6, 0.22, 175e9, 0.864))
    assert by_size["axes"]["xaxis"]["type"] == "log" and series(by_size, "0 shots")["x"] == [1_000_000, 3_000_000]
    assert "arXiv 2005.14165" in html
    other, html = charts(make("c", [outcome("lambada", 0, 10, metric="perplexity", higher_is_better=False)]))
    assert [one["name"] for one in other[0][1]["series"]] == ["run", "chance"]


def test_published_arithmetic_is_of_the_papers_own_table():
    shares = dict(published("arithmetic_3da").by_shots(7))
    assert shares == pytest.approx({0: 0.342, 1: 0.655, 50: 0.804})  # the shifted copy has 1.0 for the last
    assert published("arithmetic_3da").by_shots(0) == []
    assert [value for _, value in published("arithmetic_2da").by_size("few")][:2] == pytest.approx([0.02, 0.041])
    assert published("mmlu") is None


def test_several_checkpoints_of_a_run_are_drawn_against_training(make, charts):
    folders = [
        make(f"s{step}", [outcome("one", k, step // 10 + k) for k in (0, 1)], step=step) for step in (30, 10, 20)
    ]
    found, html = charts(*folders)
    assert [title for title, _ in found] == ["one", "one"] and "Against training" in html
    line = series(found[1][1], "1 shot")
    assert line["x"] == [10_000, 20_000, 30_000] and line["y"] == [2 / 40, 3 / 40, 4 / 40]
    assert "Against the number of parameters" not in html


def test_of_many_checkpoints_the_newest_is_drawn_against_shots(make, charts):
    folders = [make(f"s{step}", [outcome("one", 0, step)], step=step) for step in range(5, 10)]
    found, html = charts(*folders)
    assert [one["y"] for one in found[0][1]["series"] if one["name"] != "chance"] == [[9 / 40]]
    assert "Only the newest checkpoint" in html


def test_two_results_are_compared_in_a_table(make, capsys):
    first, second = make("a", [outcome("one", 0, 10)]), make("b", [outcome("one", 0, 30), outcome("two", 0, 1)])
    assert cli.run(["report", str(first), str(second)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "first: a" and printed[3].split()[3:6] == ["0.2500", "0.7500", "+0.5000"]
    page = first.parent / "comparison.html"
    assert printed[-1] == str(page)
    words = Page(page.read_text()).text
    assert {"Differences", "+0.5000", "exact McNemar", "Not compared: two is in b only."} <= set(words)


def test_command_of_one_result(make, tmp_path, capsys):
    folder, other = make("a", [outcome("one", 0, 10)]), tmp_path / "new" / "page.html"
    assert cli.run(["report", str(folder)]) == 0
    assert cli.run(["report", str(folder), "--output", str(other)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder / "report.html"), str(other)]
    assert other.read_bytes() == (folder / "report.html").read_bytes()
    with pytest.raises(ConfigError, match="report them apart"):
        cli.run(["report", str(folder), str(tmp_path)])
    (folder / "examples" / "one_0shot.jsonl").unlink()
    with pytest.raises(DataError, match=r"one_0shot\.jsonl"):
        cli.run(["report", str(folder)])


def test_prompts_are_only_text(make, charts):
    page = Page(charts(make("a", [outcome(HOSTILE, 0, 10)], run=HOSTILE))[1])
    assert page.tags.count("script") == 3  # the data, plotly.js, the page's own
    assert "img" not in page.tags and not [name for name in page.names if name == "src" or name.startswith("on")]
    assert not [text for text in page.text if "\x00" in text or "\u202e" in text]


def test_prompts_that_several_results_share_are_shown_once(make, charts):
    folders = [make(name, [outcome("one", 0, 10), outcome("two", 0, 10, n)]) for name, n in (("a", 40), ("b", 30))]
    titles = re.findall(r"<summary>(one|two)<small>(.*?)</small>", charts(*folders)[1])
    assert titles == [("one", "0 shots"), ("two", "0 shots, a"), ("two", "0 shots, b")]


def test_invisible_characters_are_marked():
    html = marked("a  b \n\tc\u202e\x00\ud800\u3000é")
    assert re.findall(r'data-sign="(.*?)"', html) == ["·", "·", "·", "↵", "→", "U+202E", "U+0000", "U+D800", "U+3000"]
    assert "".join(Page(html).text) == "a  b \n\tcé"  # what is copied, but for characters that a page cannot hold
    assert marked("a b <i>") == "a b &lt;i&gt;"
    assert "data-sign" not in marked("👩\u200d👧 中文")


def test_of_long_prompts_the_ends_are_shown():
    html = marked("a" * LONGEST + "b" * 5000)
    assert "5,000 characters left out" in html
    assert (html.count("a" * (LONGEST // 2)), html.count("b")) == (1, 5000 + len(re.findall("<b|/b", html)))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_a_browser_draws_it(make, tmp_path):
    names = ["lambada", HOSTILE, *SUBJECTS]
    folders = [
        make(name, [outcome(task, k, 9 + k) for task in names for k in (0, 1)], run, step, size)
        for name, run, step, size in (("a", "x", 1, 1_000_000), ("b", "x", 2, 1_000_000), ("c", "y", 2, 9_000_000))
    ]
    path, _ = write_in_context_page(folders)
    html = path.read_text()
    charts = json.loads(re.search(r'type="application/json" id="data">(.*?)</script>', html)[1])
    assert len(charts) == 3 * 9  # an average, two tasks, a family's average and its five tasks, in three views
    hidden = {int(place) for _, part in folded(html) for place in re.findall(r'id="plot(\d+)"', part)}
    assert len(hidden) == 3 * 5
    drawn(path, tmp_path, [chart for place, chart in enumerate(charts) if place not in hidden])
    unfold = "<script>for (const one of document.querySelectorAll('details')) one.open = true</script></body>"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", html)  # that would not let it run
    path.write_text(free.replace("</body>", unfold))
    drawn(path, tmp_path, charts)


def drawn(page: Path, folder: Path, charts: list[dict]) -> None:
    """A browser draws these charts of a page and no others, with all their lines and intervals."""
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [CHROMIUM, *options.split(), f"--user-data-dir={folder}/profile", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=60000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'data-drawn="yes"' in done.stdout
    assert len(re.findall(r'class="plot js-plotly-plot"', done.stdout)) == len(charts)
    lines = [one for chart in charts for one in chart["series"]]
    assert len(re.findall(r'class="trace scatter ', done.stdout)) == len(lines)
    points = sum(len(one["x"]) for one in lines if one["low"])
    assert len(re.findall(r'class="yerror"', done.stdout)) == points
