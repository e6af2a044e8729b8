"""The bench of the control plane, with few ranks."""

import json

import bench_control_plane
import pytest


def test_figures_of_a_small_job(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(bench_control_plane, "GLOO_RANKS", 6)
    output = tmp_path / "found.json"
    sizes = ["--ranks", "5", "--processes", "2", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["bench_control_plane.py", *sizes, "--output", str(output)])
    bench_control_plane.main()
    found = json.loads(output.read_text())
    (job,) = found["jobs"]
    assert (job["ranks"], job["tick_seconds"]) == (5, 0.5)
    assert 0 < job["look_median_ms"] <= job["look_p99_ms"]
    assert job["named_after_seconds"] >= 2.5
    groups = found["open_files_of_a_rank_in_a_group"]
    fixed = groups["lazy"]["formed"]
    assert groups["eager"]["formed"] == groups["eager"]["gathered"] == fixed + 5
    assert groups["lazy"]["gathered"] == fixed + 2  # its two neighbours


def test_too_many_ranks_for_the_limit_of_open_files():
    with pytest.raises(SystemExit, match="open files are needed"):
        bench_control_plane.allow_files(1 << 40)
