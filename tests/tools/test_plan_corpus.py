"""The plan of a crawl: sums by hand, from rates that are made up."""

import json

import plan_corpus
import pytest

from megagpt.errors import ConfigError

STEPS = {"read shard": 100, "write shard": 50, "minhash signatures": 10, "decontamination count": 20}
SEARCH = {"exact": 1000, "match": 500, "components": 2000, "split": 250, "cluster": 4000}
RATES = {
    "steps": {name: {"mb_per_cpu_second": {"megagpt": rate}} for name, rate in STEPS.items()},
    "chains": {"fineweb": {"mb_per_cpu_second": {"megagpt": 5.0, "datatrove": 0.1}}},
    "search": {"documents_per_cpu_second": SEARCH},
}
CRAWL = plan_corpus.Snapshot(1e6, 1000, 0.5, kept_pages=0.25, kept_bytes=0.1, alike=0.4)
"""1,000 MB of text, of which 100 MB in 250,000 pages are kept; 100,000 of those are alike."""


def test_phases():
    phases = {phase.name: phase for phase in plan_corpus.plan(RATES, CRAWL, "fineweb")}
    seconds = {name: phase.cpu_seconds for name, phase in phases.items()}
    assert seconds == pytest.approx(
        {
            "filter": 1000 / 5 + 100 / 50,
            "exact": 250_000 / 1000,
            "sign": 100 / 100 + 100 / 10,
            "match": 250_000 / 500,
            "components": 250_000 / 2000,
            "split": 250_000 / 250,
            "cluster": 250_000 / 4000,
            "count": 100 / 100 + 100 / 20,
            "write": 100 / 100 + 100 / 20 + 100 / 50,
        }
    )
    tasks = {name: phase.tasks for name, phase in phases.items()}
    assert set(tasks.values()) == {4, 1} and tasks["components"] == 1  # 500 MB on disk in shards of 128 MB
    assert phases["match"].memory == pytest.approx(250_000 * 14 / 4 * 80)
    assert phases["exact"].memory == pytest.approx(250_000 / 4 * 70)
    assert phases["components"].memory == pytest.approx(100_000 * 350)
    assert phases["cluster"].memory == pytest.approx(100_000 * 14 / 4 * 80)
    assert phases["filter"].read == 5e8 and phases["sign"].written == 250_000 * 14 * 16


def test_hours_wait_for_the_last_task_of_each_phase():
    phases = [plan_corpus.Planned("a", 4, 4 * 3600, 0, 0), plan_corpus.Planned("b", 1, 3600, 0, 0)]
    assert [plan_corpus.hours(phases, cores) for cores in (1, 2, 3, 4, 100)] == [5, 3, 3, 2, 2]
    huge = plan_corpus.Snapshot(1e10, 5000, 0.4, 0.1, 0.1, 0.3)
    assert max(phase.tasks for phase in plan_corpus.plan(RATES, huge, "fineweb")) == 10_000


def test_command(tmp_path, monkeypatch, capsys):
    rates, report = tmp_path / "rates.json", tmp_path / "report.json"
    command = ["plan_corpus.py", "--rates", str(rates), "--pages", "1e6", "--cores", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--report", str(report)])
    with pytest.raises(ConfigError, match="no such file"):
        plan_corpus.main()
    rates.write_text(json.dumps(RATES))
    dropped = {"c4: few sentences": 600, "near-duplicate": 200}
    counts = {rule: {"documents": count, "bytes": count * 10} for rule, count in dropped.items()}
    report.write_text(json.dumps({"input": {"documents": 1000, "bytes": 12_000}, "dropped": counts}))
    plan_corpus.main()
    printed = capsys.readouterr().out
    assert "1e+06 pages of 12 bytes of text; rules keep 40.0% of the pages and 50.0% of the text" in printed
    assert "| components | 1 |" in printed and "On 2 cores: " in printed
    with pytest.raises(ConfigError, match="no rate of chains gopher"):
        plan_corpus.plan(RATES, CRAWL, "gopher")
