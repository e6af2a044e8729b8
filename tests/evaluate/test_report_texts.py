"""Samples before and after a run, answers to instructions, and links, as the report shows them."""

import json
import re
from pathlib import Path

import pytest

from megagpt.cli.report import parse_link
from megagpt.errors import ConfigError
from megagpt.evaluate.report_texts import SHOWN_ANSWERS, instructions_section, links_section, samples_section
from megagpt.evaluate.runs import Run, read_runs

HOSTILE = "<script>alert(1)</script>"


def make_runs(folder: Path, *names: str) -> list[Run]:
    """Runs of one step, of which the files in `folder` are read."""
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return read_runs([folder / name for name in names])


def write_lines(path: Path, *records: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_sample_from_before_the_run_stands_above_its_successor(tmp_path):
    write_lines(tmp_path / "a/samples_before.jsonl", {"step": 0, "prompt": "Say: cat", "text": f"noise {HOSTILE}"})
    write_lines(
        tmp_path / "a/samples.jsonl",
        {"step": 9, "prompt": "Say: cat", "text": "cat"},
        {"step": 9, "prompt": "Say: dog", "text": "dog"},
    )
    html = samples_section(make_runs(tmp_path, "a"))
    first, second = re.findall("<article>(.*?)</article>", html, re.DOTALL)
    assert re.findall("<small>(.*?)</small>", first) == ["before", "step 9"]
    assert first.index("noise") < first.index("</b>cat")
    assert "before" not in second
    assert "<script>" not in html
    assert samples_section(make_runs(tmp_path, "b")) == ""


def test_shares_of_instructions_and_some_answers(tmp_path):
    for name, share in (("sft", 0.5), ("ppo", 0.625)):
        metrics = {"all": {"instructions": 8, "right": share}, "copy": {"instructions": 8, "right": 0.25}}
        folder = tmp_path / name / "instructions"
        answer = {"prompt": f"Say: {name}", "answer": HOSTILE, "right": name == "ppo"}
        write_lines(folder / "samples.jsonl", *[answer] * 12)
        (folder / "result.json").write_text(json.dumps({"metrics": metrics}))
    html = instructions_section(make_runs(tmp_path, "demo", "sft", "ppo"))
    assert html.index("50.0%") < html.index("62.5%") < html.index("25.0%")
    assert html.count("Say: ppo") == SHOWN_ANSWERS
    assert "Say: sft" not in html
    assert "<td>right</td>" in html and "<script>" not in html
    assert instructions_section(make_runs(tmp_path, "demo")) == ""


def test_links():
    html = links_section([("a map", "embed/map.html"), (HOSTILE, "http://127.0.0.1:8000/")])
    assert '<a href="embed/map.html">a map</a>' in html
    assert '<a href="http://127.0.0.1:8000/">' in html
    assert "<script>" not in html
    assert links_section([]) == ""
    assert parse_link("a map=embed/map.html?a=b") == ("a map", "embed/map.html?a=b")
    for wrong in ("javascript", "a=javascript:alert(1)", "=x", "x="):
        with pytest.raises(ConfigError, match="write TEXT=ADDRESS"):
            parse_link(wrong)
