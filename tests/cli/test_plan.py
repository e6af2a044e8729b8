"""`megagpt plan` from the outside."""

import json
import re
from functools import partial

import pytest
from plan_published import TABLES, plan

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
    message = r"does not fit: a rank of pipeline stage 0 needs .* the largest part is gradients"
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


def test_the_output_names_what_it_assumes(run):
    out = run("experiment=pretrain_1_3b", "--gpus", "8")
    assert "1 dense, 1 banded (256 tokens) in turn: 12 dense, 12 banded (256 tokens)" in out
    assert "WARNING" not in out
    dense = ("experiment=pretrain_1_3b", "model.attention_pattern=[dense]", "--gpus", "8", "--json")
    report = json.loads(run(*dense))
    assert report["assumes"]["attention"].startswith("all 24 layers dense; a fused kernel")
    assert report["not_trustworthy"] == []
    assert "behind the last backward pass" in report["assumes"]["messages"]
    off = json.loads(run(*dense, "parallel.overlap_grad_reduce=false"))
    assert "behind nothing" in off["assumes"]["messages"] and off["step_seconds"] > report["step_seconds"]
    device = report["device"]
    links = f"{device['inter_node_gbs']} GB/s between, {device['inter_node']:.0%} reached"
    assert links in report["assumes"]["device's links"]
    changed = ("parallel=zero2", "parallel.offload_optimizer=cpu", "parallel.recompute=full")
    report = json.loads(run("experiment=reward_1_3b", *changed, "--gpus", "8", "--json"))
    assert "9 answers to each prompt" in report["assumes"]["sequences"]
    assert f"{device['host_gbs']} GB/s" in report["assumes"]["host"]


def test_zero_3_over_several_nodes_is_marked(run):
    for gpus, marked in (("8", False), ("16", True)):
        report = json.loads(run("experiment=pretrain_13b", "parallel=zero3", "--gpus", gpus, "--json"))
        assert bool(report["not_trustworthy"]) == marked
    assert "NOT TRUSTWORTHY" in run("experiment=pretrain_13b", "parallel=zero3", "--gpus", "16")


def test_assumptions_of_published_runs_change_the_plan(run):
    arguments = ("experiment=pretrain_13b", "parallel=3d", "--gpus", "16", "parallel.sequence_parallel=false", "--json")
    plain, fused, scattered = (
        json.loads(run(*arguments, *flags)) for flags in ((), ("--fused-accumulation",), ("--scattered-messages",))
    )
    assert fused["step_seconds"] < plain["step_seconds"]
    assert "inside the matrix product" in fused["assumes"]["weights' gradients"]
    assert scattered["step_parts_seconds"]["pipeline"] < plain["step_parts_seconds"]["pipeline"]
    assert "share the sending" in scattered["assumes"]["messages"]
    with pytest.raises(ConfigError, match="--search"):
        run("experiment=pretrain_13b", "--search", "--fused-accumulation")


def test_a_search_says_why_nothing_is_found(run):
    with pytest.raises(ConfigError, match=r"optim.global_batch_size \(512\) must be a multiple of the replicas"):
        run("experiment=pretrain_1_3b", "--search", "--gpus", "7")
    with pytest.raises(ConfigError, match=r"needs least memory .*\n.*parallel.offload_optimizer=cpu"):
        run("experiment=pretrain_6_7b", "--search", "--gpus", "1")


@pytest.mark.parametrize("rows", TABLES.values(), ids=lambda rows: rows.__name__)
def test_commands_of_published_runs_give_what_the_page_shows(run, rows):
    arguments, _ = next(rows())
    report = json.loads(run(*arguments.words, "--json"))
    assert report["step_seconds"] == pytest.approx(plan(arguments).step_seconds, rel=1e-12)
    assert "dense" in report["assumes"]["attention"]
    assert "banded" not in report["assumes"]["attention"]
