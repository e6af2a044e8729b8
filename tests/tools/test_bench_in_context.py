"""The benchmark of in-context evaluation: honest rates and counts, a check of both sides, and a judgement."""

import json
import math
import statistics

import pytest

pytest.importorskip("lm_eval")

import bench_in_context

from megagpt.config.load import load
from megagpt.errors import MegaGPTError

ROUNDS = 2


def run(monkeypatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["bench_in_context.py", *options])
    bench_in_context.main()


def test_report(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_in_context, "REQUIRED", 0.0)
    monkeypatch.setattr(bench_in_context, "BATCH_SIZES", (1, 2))
    output = tmp_path / "out/b.json"
    run(monkeypatch, "--models", "demo", "--questions", "3", "--rounds", str(ROUNDS), "--output", str(output))
    report = json.loads(output.read_text())
    assert {"cpu", "python", "torch", "transformers", "lm-eval", "date", "command", "threads"} <= set(report)
    assert set(report["models"]) == {"demo"} and set(report["models"]["demo"]) == {"drawn", "fixed"}
    model = load(["model=demo", "data.tokenizer=none"]).model
    for frame, found in report["models"]["demo"].items():
        requests = bench_in_context.make_requests(model, bench_in_context.EXAMPLES["demo"], frame, 3)
        inputs = [(*context, *choice)[:-1] for _, context, choice in requests]
        assert found["requests"] == len(requests) == 3 * 4
        assert max(map(len, inputs)) <= model.sequence_length
        assert found["tokens"] == sum(map(len, inputs))
        assert found["computed"] == len({tokens[:end] for tokens in inputs for end in range(1, len(tokens) + 1)})
        assert found["reused"] == pytest.approx(1 - found["computed"] / found["tokens"], abs=1e-4)
        assert found["hf_batch_size"] in (1, 2)
        assert 0 <= found["largest_difference"] <= bench_in_context.TOLERANCE
        for seconds, rate, ratio in (
            ("seconds", "requests_per_second", "ratio"),
            ("cpu_seconds", "requests_per_cpu_second", "ratio_by_cpu_time"),
        ):
            medians = {side: statistics.median(values) for side, values in found[seconds].items()}
            assert set(medians) == {"megagpt", "lm_eval_hf"}
            assert all(len(values) == ROUNDS for values in found[seconds].values())
            for side, median in medians.items():
                assert found[rate][side] == pytest.approx(12 / median, rel=0.05)
            assert found[ratio] == pytest.approx(medians["lm_eval_hf"] / medians["megagpt"], rel=0.05)
    frames = report["models"]["demo"]
    assert frames["fixed"]["reused"] > frames["drawn"]["reused"] > 0.5


def test_a_slow_run_fails_and_leaves_its_figures(monkeypatch, tmp_path):
    output = tmp_path / "b.json"
    for ratio, fails in ((3.0, False), (2.99, True)):
        figures = {"models": {"demo": {"drawn": {"ratio": 9.0}, "fixed": {"ratio": ratio}}}}
        monkeypatch.setattr(bench_in_context, "measure", lambda _, figures=figures: figures)
        output.unlink(missing_ok=True)
        if fails:
            with pytest.raises(MegaGPTError, match=r"less than 3 times .*\{'demo, fixed': 2.99\}"):
                run(monkeypatch, "--output", str(output))
        else:
            run(monkeypatch, "--output", str(output))
        assert json.loads(output.read_text())["models"] == figures["models"]


def test_results_that_differ_are_an_error():
    requests = [(None, [1], [2, 3]), (None, [1], [4])]
    fine = [(-2.0, False), (-1.0, True)]
    assert bench_in_context.check_same(fine, [(-2.0001, False), (-1.0, True)], requests) == pytest.approx(5e-5)
    for other in ([(-2.0, False), (-1.0002, True)], [(-2.0, False), (-1.0, False)], [(math.nan, False), (-1.0, True)]):
        with pytest.raises(MegaGPTError, match=r"request [01]: megagpt gives"):
            bench_in_context.check_same(fine, other, requests)
