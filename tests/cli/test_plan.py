"""`megagpt plan` from the outside."""

import json
import re
from functools import partial

import pytest

from megagpt.errors import ConfigError


@pytest.fixture
def run(megagpt):
    return partial(megagpt, "plan")


def test_tables(run):
    out = run("experiment=pretrain_1_3b", "--gpus", "8", "--device", "a100")
    assert "gpt3_1_3b on 8 x A100-80" in out
    assert "1,315,819,520" in out


def test_json_and_page(run, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "plan.html"
    arguments = (
        "experiment=pretrain_13b",
        "parallel=3d",
        "--gpus",
        "16",
        "--device",
        "h200",
        "--json",
        "--html",
        str(page),
    )
    report = json.loads(run(*arguments))
    assert report["fits"]
    assert len(report["memory_gib"]) == 2
    assert report["memory_gib"][0]["total"] < report["usable_gib"]
    assert report["days"] * 24 * 16 == pytest.approx(report["gpu_hours"])
    text = page.read_text(encoding="utf-8")
    assert "Pipeline: bubble" in text
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', text)


def test_what_does_not_fit_is_refused(run):
    message = r"does not fit: a rank of pipeline stage 0 needs .* most are gradients"
    with pytest.raises(ConfigError, match=message) as refused:
        run("experiment=pretrain_13b", "parallel=data", "optim.ramp_start=16", "--gpus", "8", "--device", "a100")
    assert str(refused.value).count("\n") >= 2


def test_a_broken_rule_leads_to_the_search(run):
    with pytest.raises(ConfigError, match="--search finds layouts"):
        run("experiment=pretrain_175b", "parallel=data", "--gpus", "1024")


def test_search(run):
    out = run("experiment=pretrain_2_7b", "--gpus", "16", "--search", "--device", "b200")
    assert "the fastest: " in out
    found = json.loads(run("experiment=pretrain_2_7b", "--gpus", "16", "--search", "--json"))
    assert len(found) == 10
