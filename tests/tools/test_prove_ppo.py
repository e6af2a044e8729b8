"""The proof that PPO learns: it holds for a small run, and says so where a claim does not."""

import json

import prove_ppo as tool
import pytest

from megagpt.errors import ConfigError


@pytest.mark.slow
@pytest.mark.thorough
def test_ppo_learns_is_held_near_its_reference_and_keeps_its_text(tmp_path, monkeypatch, capsys):
    small = ["--seeds", "1", "--tokens", "400000", "--episodes", "5120", "--margin", "0.1", "--jobs", "2"]
    files = ["--output", f"{tmp_path}/found.json", "--plot", f"{tmp_path}/curves.svg"]
    monkeypatch.setattr("sys.argv", ["prove_ppo.py", *small, *files, "--runs-dir", f"{tmp_path}/runs"])
    ended = tool.main()
    said = capsys.readouterr().out
    assert ended == 0, said
    assert said.count("holds: ") == 5
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]["plain"]
    assert run["step"] == [0, 40, 80]
    assert f"| 1 | {run['validation_score'][0]:.3f} | {run['validation_loss'][0]:.3f} | " in said
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    console = (tmp_path / "runs/plain_1/console.txt").read_text()
    assert tool.main() == 0  # from the runs that are there
    assert (tmp_path / "runs/plain_1/console.txt").read_text() == console
    monkeypatch.setattr("sys.argv", ["prove_ppo.py", *small, "--tokens", "500000", "--runs-dir", f"{tmp_path}/runs"])
    with pytest.raises(ConfigError, match="base was made with other settings"):
        tool.main()


GOOD = {"validation_score": [0.3, 0.7], "validation_loss": [1.5, 1.8], "validation_kl": [0.0, 0.5], "largest_kl": 0.55}


@pytest.mark.parametrize(
    ("way", "change", "claim"),
    [
        ("plain", {"validation_score": [0.3, 0.5]}, "plain: the score rises by 0.200"),
        ("target", {"largest_kl": 0.81}, "0.810 nats"),
        ("text", {"validation_loss": [1.5, 1.65]}, "+0.090 to +0.150, plain by +0.300"),
    ],
)
def test_a_claim_that_one_seed_does_not_bear_out_does_not_hold(way, change, claim):
    kept = GOOD | {"validation_loss": [1.5, 1.59]}
    found = {"plain": [GOOD, GOOD], "target": [GOOD, GOOD], "text": [kept, kept]}
    assert all(holds for holds, _ in tool.check_claims(found, 0.3))
    found[way] = [found[way][0], found[way][1] | change]
    (broken,) = [said for holds, said in tool.check_claims(found, 0.3) if not holds]
    assert claim in broken
