"""The report: its numbers and escaping as text, and the page as headless Chromium draws it."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from megagpt.config.schema import Config, OptimConfig
from megagpt.errors import DataError
from megagpt.evaluate import curves
from megagpt.evaluate.report import before_after_rows, build_report, summary_rows
from megagpt.evaluate.runs import read_runs

REPORT = [sys.executable, "-m", "megagpt.cli", "report"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>console.error('injected')</script><img src=x onerror=\"console.error('injected')\">"

pytest.importorskip("plotly")


def make_run(folder: Path, steps: int = 40, lr: float = 6e-4, complete: bool = True) -> Path:
    """A run folder; without `complete` only its metrics, cut off in the middle of a line."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        loss = 2 + 8 / step
        at = {"step": step, "tokens": 1000 * step}
        lines.append(at | {"loss": loss, "lr": lr, "grad_norm": 1.0, "tokens_per_second": 500.0, "memory_gib": 1.5})
        if step % 10 == 0:
            lines.append(at | {"validation_loss": loss + 0.1, "validation_bits_per_byte": loss / 2})
    lines[2] |= {"loss": None, "nonfinite": ["loss"]}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if not complete:
        (folder / "metrics.jsonl").write_text(text[:-9])
        return folder
    (folder / "metrics.jsonl").write_text(text)
    config = json.loads(json.dumps(dataclasses.asdict(Config(run_name=folder.name, optim=OptimConfig(lr=lr)))))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    evaluation = {"step": steps, "split": "test", "loss": 2.25, "perplexity": math.exp(2.25), "bits_per_byte": 1.125}
    compressors = {"gzip_9_bits_per_byte": 1.75, "xz_9_bits_per_byte": 1.5}
    (folder / "evaluation.json").write_text(json.dumps(evaluation | compressors))
    sample = {"step": steps, "prompt": f"{HOSTILE} prompt", "text": f"{HOSTILE} text & more"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    about = {"command": f"python -m megagpt {HOSTILE}", "versions": {"torch": "2.13.0"}, "device": HOSTILE, "ranks": 2}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


class Page(HTMLParser):
    """Text and tags of a page, scripts and styles apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.inside = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


def panels_of(html: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])["panels"]


def test_page_is_self_contained_and_escaped(tmp_path: Path):
    html = build_report(read_runs([make_run(tmp_path / "demo")]))
    page = Page(html)
    assert html.count("plotly.js v") == 1
    assert page.tags.count("script") == 3  # the data, plotly.js, the page's own
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name == "src" or name.startswith("on")]
    text = " ".join(page.text)
    assert f"{HOSTILE} text & more" in text
    assert f"python -m megagpt {HOSTILE}" in text
    assert "1.1250" in text
    assert "gzip -9 1.75" in text
    assert "xz -9 1.50" in text


def test_curves_hold_the_runs_numbers(tmp_path: Path):
    (run,) = runs = read_runs([make_run(tmp_path / "demo")])
    panels = {panel["title"]: panel for panel in panels_of(build_report(runs))}
    assert {"Loss", "Held-out loss", "Held-out bits per byte", "Learning rate", "Gradient norm"} < set(panels)
    assert {"Throughput", "Peak memory"} < set(panels)
    assert "Model FLOPs utilisation" not in panels  # never measured
    faint, training, validation = panels["Loss"]["traces"]
    assert faint["y"][2] is None
    assert faint["y"][3:] == pytest.approx([line["loss"] for line in run.train[3:]], rel=1e-5)
    assert faint["step"] == [line["step"] for line in run.train]
    assert faint["tokens"] == [line["tokens"] for line in run.train]
    assert len(training["y"]) == len(faint["y"])
    assert validation["step"] == [10, 20, 30, 40]
    bits = panels["Held-out bits per byte"]
    assert bits["traces"][-1]["y"] == [1.125]
    assert bits["traces"][-1]["tokens"] == [40_000]
    assert bits["references"] == [{"label": "gzip -9", "y": 1.75}, {"label": "xz -9", "y": 1.5}]


def test_tasks_have_a_panel_each_and_a_curve_for_each_number_of_demonstrations(tmp_path: Path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b"), make_run(tmp_path / "c")]
    for folder, gain in zip(folders, (0.01, 0.02), strict=False):
        lines = [
            {"step": step, "tokens": 1000 * step, "task_two_words_0shot": 0.25, "task_two_words_8shot": gain * step}
            for step in (10, 20)
        ]
        lines.append({"step": 30, "tokens": 30_000, f"task_{HOSTILE}_0shot": 0.5})
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    runs = read_runs(folders)
    html = build_report(runs)
    assert "img" not in Page(html).tags
    panels = {panel["title"]: panel for panel in panels_of(html)}
    assert f"Task: {HOSTILE}" in panels
    curves = {(trace["run"], trace["label"]): trace for trace in panels["Task: two_words"]["traces"]}
    assert set(curves) == {(0, "0-shot"), (0, "8-shot"), (1, "0-shot"), (1, "8-shot")}
    assert curves[1, "8-shot"]["y"] == [0.2, 0.4]
    assert curves[1, "8-shot"]["step"] == [10, 20]
    assert curves[0, "0-shot"]["series"] != curves[0, "8-shot"]["series"]
    assert panels["Held-out loss"]["traces"][0]["step"] == [10, 20, 30, 40]  # tasks do not hide evaluations
    rows = dict(summary_rows(runs))
    assert rows["two_words, 8-shot"] == ["0.2000", "0.4000", ""]


def test_summary(tmp_path: Path):
    rows = dict(summary_rows(read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=20)])))
    assert rows["Steps"] == ["40", "20"]
    assert rows["Tokens"] == ["40k", "20k"]
    assert rows["Final loss (test)"] == ["2.2500", "2.2500"]
    assert rows["Time training"] == ["80 s", "40 s"]  # 1,000 tokens a step at 500 a second
    assert rows["Peak memory"] == ["1.50 GiB", "1.50 GiB"]


def test_what_was_measured_before_and_after_is_a_table(tmp_path: Path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    before = {"step": 0, "split": "test", "loss": 3.5, "tokens": 9, "fim_exact_match": 0.0, f"{HOSTILE}": 1.5}
    (folders[0] / "evaluation_before.json").write_text(json.dumps(before | {"never_measured_again": 4.0}))
    after = json.loads((folders[0] / "evaluation.json").read_text())
    (folders[0] / "evaluation.json").write_text(json.dumps(after | {"fim_exact_match": 0.0625, f"{HOSTILE}": 1}))
    run, other = runs = read_runs(folders)
    hostile = HOSTILE.replace("_", " ").capitalize()
    wanted = [("Loss", ["3.5000", "2.2500"]), ("FIM exact match", ["0.0%", "6.2%"])]
    assert before_after_rows(run) == [*wanted, (hostile, ["1.5000", "1.0000"])]
    assert before_after_rows(other) == []
    alone, both, without = (build_report(chosen) for chosen in ([run], runs, [other]))
    assert "img" not in Page(alone).tags
    assert "<h2>Before and after</h2>" in alone
    assert "<h2>Before and after: a</h2>" in both
    assert "Before and after: b" not in both
    assert "Before and after" not in without


def test_several_runs_show_what_differs_first(tmp_path: Path):
    html = build_report(read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", lr=1e-3)]))
    differs, same = html.split("settings that are the same", 1)
    differs = differs[differs.index("What differs") :]
    assert "optim.lr" in differs
    assert "0.001" in differs
    assert "beta2" not in differs
    assert "beta2" in same
    assert {trace["run"] for trace in panels_of(html)[0]["traces"]} == {0, 1}


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    runs = read_runs([make_run(tmp_path / "x/demo"), make_run(tmp_path / "y/demo")])
    assert runs[0].name != runs[1].name


def test_metrics_alone_cut_off_are_enough(tmp_path: Path, caplog):
    (run,) = read_runs([make_run(tmp_path / "demo", complete=False)])
    assert [line["step"] for line in run.validation] == [10, 20, 30]
    assert "incomplete line" in caplog.text
    html = build_report([run])
    assert "Samples" not in html[: html.index('id="data"')]
    assert panels_of(html)[0]["title"] == "Loss"


def test_broken_extras_are_left_out_with_a_warning(tmp_path: Path, caplog):
    folder = make_run(tmp_path / "demo")
    (folder / "evaluation.json").write_text('{"step": 4')
    (folder / "config.yaml").write_text("!!python/object/apply:os.system ['false']")
    (run,) = read_runs([folder])
    assert run.evaluation == run.config == {}
    assert "evaluation.json" in caplog.text
    assert "config.yaml" in caplog.text
    build_report([run])


def test_long_curves_keep_their_extremes(tmp_path: Path):
    values = [math.sin(index / 900) for index in range(50_000)]
    values[12_345], values[40_001] = 9.0, -9.0
    values[777] = None
    kept = curves.thin_out(values)
    assert len(kept) <= curves.MAX_POINTS
    assert kept == sorted(set(kept))
    assert {12_345, 40_001} < set(kept)
    assert curves.thin_out(values[:100]) == list(range(100))
    html = build_report(read_runs([make_run(tmp_path / "demo", steps=curves.MAX_POINTS + 1)]))
    assert "thinned out" in html
    assert len(panels_of(html)[0]["traces"][0]["y"]) <= curves.MAX_POINTS


def test_smoothing():
    assert curves.smooth([3.0] * 500) == pytest.approx([3.0] * 500)
    assert curves.smooth([None, 1.0, None]) == [None, 1.0, None]
    noisy = curves.smooth([(-1.0) ** index for index in range(1000)])
    assert abs(noisy[-1]) < 0.1


@pytest.mark.parametrize(
    ("metrics", "message"), [(None, "not a run folder"), ("", "no metrics yet"), ("{}\n", "no met")]
)
def test_a_folder_without_metrics_is_a_clear_error(tmp_path: Path, metrics: str | None, message: str):
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_text(metrics)
    with pytest.raises(DataError, match=message) as caught:
        read_runs([tmp_path])
    assert str(tmp_path) in str(caught.value)
    done = subprocess.run([*REPORT, tmp_path], capture_output=True, text=True)
    assert done.returncode == DataError.exit_code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def draw(page: Path) -> tuple[str, list[str]]:
    """The page's elements after headless Chromium has drawn it, and what it wrote to its console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
    ]
    command = [CHROMIUM, *options, f"--user-data-dir={page.with_suffix('.profile')}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_chromium_draws_every_plot(tmp_path: Path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=20)]
    for folder in folders:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 10, "tokens": 10_000, "task_two_0shot": 0.25, "task_two_8shot": 0.5}) + "\n")
    page = tmp_path / "page.html"
    subprocess.run([*REPORT, *folders, "--output", page], check=True, capture_output=True)
    panels = panels_of(page.read_text())
    traces = [trace for panel in panels for trace in panel["traces"]]
    others = sum(len(panel["references"]) for panel in panels) + 2  # and the symbols of the task's two curves

    dom, console = draw(page)
    assert not console
    assert 'data-drawn="tokens"' in dom
    assert len(re.findall(r'class="plot js-plotly-plot"', dom)) == len(panels)
    assert len(re.findall(r'class="trace scatter ', dom)) == len(traces) + others
    assert len(re.findall(r'<path class="js-line" d="M', dom)) > len(panels)
    assert "gzip -9  1.75" in dom
    legends = re.findall(r'class="legendtext"[^>]*>(.*?)<', dom)
    assert legends == ["0-shot", "8-shot"]  # by their symbols, since each run has one colour

    # The same page with someone clicking on "Steps" and hiding run b; the policy would forbid such a script.
    clicks = "for (const button of ['[data-axis=step]', '[data-run=\"1\"]']) document.querySelector(button).click();"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    clicked = tmp_path / "clicked.html"
    clicked.write_text(html.replace("</body>", f"<script>{clicks}</script></body>"))
    dom, console = draw(clicked)
    assert not console
    assert 'data-drawn="step"' in dom
    of_first = [trace for trace in traces if trace["run"] == 0]
    assert len(re.findall(r'class="trace scatter ', dom)) == len(of_first) + others
