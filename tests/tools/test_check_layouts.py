"""The layout proof passes where layouts are right, and names the one that is not."""

import json
import math

import check_layouts
import pytest

from megagpt.config.load import load
from megagpt.errors import ConfigError
from megagpt.evaluate import layout_parity

SMALL = [
    "model=tiny",
    "model.hidden_size=16",
    "model.vocab_size=100",
    "model.sequence_length=8",
    "model.num_layers=2",
    "optim=demo",
    "optim.global_batch_size=2",
    "data.corpora=[]",
]


def without_norm_gradients(*args):
    """Plants a fault: under sequence parallelism each rank keeps the gradients of its own tokens' norms."""
    import megagpt.model.norms

    megagpt.model.norms._share_gradients = lambda norm, config: None
    return layout_parity.train_cases(*args)


def _check(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["check_layouts.py", "--ranks", "2", "--steps", "2", *arguments, *SMALL])
    return check_layouts.main()


def test_a_wrong_layout_is_named(monkeypatch, tmp_path, capsys, caplog):
    run_ranks = layout_parity.run_ranks

    def run_wrongly(_, *args, **kw):
        return run_ranks(without_norm_gradients, *args, **kw)

    monkeypatch.setattr(layout_parity, "run_ranks", run_wrongly)
    assert _check(monkeypatch, "--only", "ZeRO-1, full recompute", "--output", str(tmp_path / "proof.json")) == 1

    wrong = "TP2 SP ZeRO-1, full recompute"
    right = [f"{name} ZeRO-1, full recompute" for name in ("one rank", "DP2", "PP2")]
    rows = {row["layout"]: row for row in json.loads((tmp_path / "proof.json").read_text())["layouts"]}
    assert set(rows) == {wrong, *right, *layout_parity.REFERENCES}
    assert [name for name, row in rows.items() if row["grad_norm_difference"] > 1e-4] == [wrong]
    assert all(rows[name]["loss_difference"] < 1e-5 for name in right)
    assert all(row["milliseconds"] > 0 and row["memory_mib"] > 50 for row in rows.values())
    (message,) = (record.message for record in caplog.records if record.levelname == "ERROR")
    assert message.startswith(f"Model, {wrong} on 2 ranks differs from one rank")
    table = capsys.readouterr().out
    assert [name for name in rows if f"| **{name}: NOT EQUAL** | 2 |" in table] == [wrong]


def test_right_layouts_pass_and_the_docs_are_written(monkeypatch, tmp_path, capsys):
    page = tmp_path / "benchmarks" / "layouts.md"
    page.parent.mkdir()
    page.write_text("before\n" + "\nold\n".join(check_layouts.MARKERS) + "\nafter\n")
    monkeypatch.setattr(check_layouts, "DOCS", tmp_path)
    assert _check(monkeypatch, "--ranks", "1", "--write-docs") == 0
    table = capsys.readouterr().out
    assert page.read_text() == "before\n" + f"\n\n{table}\n".join(check_layouts.MARKERS) + "\nafter\n"
    proof = json.loads((tmp_path / "benchmarks" / "layouts_cpu.json").read_text())
    assert {row["layout"] for row in proof["layouts"]} >= {*layout_parity.REFERENCES, "one rank ZeRO-1, full recompute"}


def test_every_layout_is_tried_or_refused_by_name():
    found, refused = layout_parity.cases(
        {"M": load([*SMALL, "optim.global_batch_size=4", "model.hidden_dropout=0.1", "optim.ramp_start=2"])}, 4
    )
    for case in found:
        assert case.config.model.hidden_dropout == 0
        assert case.config.optim.ramp_start is None
    kinds = ["DP4", "PP2 DP2", "TP2 DP2", "TP2 SP DP2", "TP2 PP2", "TP2 SP PP2", "TP4", "TP4 SP"]
    layouts_of_deepspeed = {
        f"{name} ZeRO-{stage} (DeepSpeed)" for name in kinds if "PP" not in name for stage in (1, 2, 3)
    }
    assert {case.layout for case in found if case.ranks == 4 and "," not in case.layout} == {
        name + zero for name in kinds for zero in ("", " ZeRO-1")
    } | layouts_of_deepspeed
    of = {layout: reason for reason, by_model in refused.items() for layout in by_model["M"]}
    assert "optim.global_batch_size (4) is not a multiple of" in of["DP3"]
    assert "model.num_layers (2) is not a multiple of parallel.pipeline_parallel_size (4)" in of["PP4 ZeRO-1"]
    with pytest.raises(ConfigError, match="num_attention_heads"):
        layout_parity.cases({"M": load([*SMALL, "model.num_attention_heads=3"])}, 1)


def test_what_is_not_a_number_is_not_equal():
    (case, *_), _ = layout_parity.cases({"M": load(SMALL)}, 1)
    curve = layout_parity.Curve([1.0, 2.0], [3.0, 4.0], 1.0, 1.0)
    other = layout_parity.Curve([1.0, math.nan], [3.0, 4.0], 1.0, 1.0)
    measured = {case: [curve, curve]}
    assert all(row.equal for row in layout_parity.compare(measured, 1e-4, 1e-2))
    assert not any(row.equal for row in layout_parity.compare({case: [curve, other]}, 1e-4, 1e-2))


@pytest.mark.slow
@pytest.mark.thorough
def test_what_other_stages_learn_is_held_to_one_rank_too(monkeypatch, tmp_path, capsys):
    arguments = ["--stages", "--ranks", "2", "--steps", "2", "--only", "SP ZeRO-1, full", "--output"]
    monkeypatch.setattr("sys.argv", ["check_layouts.py", *arguments, str(tmp_path / "proof.json")])
    assert check_layouts.main() == 0
    rows, table = json.loads((tmp_path / "proof.json").read_text())["layouts"], capsys.readouterr().out
    for model in check_layouts.STAGES:
        assert f"| {model} | 3 |" in table
        (row,) = (row for row in rows if row["model"] == model and row["layout"] not in layout_parity.REFERENCES)
        assert row["layout"] == "TP2 SP ZeRO-1, full recompute"
        assert row["loss_difference"] < 1e-5 and row["grad_norm_difference"] < 1e-4


def test_stages_have_models_of_their_own(monkeypatch):
    monkeypatch.setattr("sys.argv", ["check_layouts.py", "--stages", "model=tiny"])
    with pytest.raises(SystemExit):
        check_layouts.main()
