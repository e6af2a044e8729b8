"""The proof of learning in context: what it accepts and refuses, and that it runs."""

import json
from itertools import pairwise

import prove_in_context as tool
import pytest
import torch
from scipy.stats import binomtest

from megagpt.data.tokenizer import train_tokenizer
from megagpt.errors import ConfigError, MegaGPTError

SHOTS = [0, 1, 8]
GOOD = {"rules": [0.3, 0.5, 0.8], "shuffled": [0.3, 0.31, 0.32]}


def run(arm: str, accuracies: list[float]) -> dict:
    found = {str(count): [value, value - 0.02, value + 0.02] for count, value in zip(SHOTS, accuracies, strict=True)}
    return {"seed": 1, "arm": arm, "kinds": {tool.KNOWN: {"chance": 0.3, "accuracy": found}}}


def failures(**changes: list[float]) -> list[str]:
    runs = [run(arm, accuracies) for arm, accuracies in (GOOD | changes).items()]
    return tool.failures(runs, SHOTS, margin=0.3, control_margin=0.06)


def test_a_model_that_learns_beside_a_control_that_does_not_is_accepted():
    assert failures() == []


@pytest.mark.parametrize(
    ("arm", "accuracies", "message"),
    [
        ("rules", [0.4, 0.5, 0.8], "without examples is not chance"),
        ("rules", [0.2, 0.5, 0.8], "without examples is not chance"),
        ("rules", [0.3, 0.5, 0.59], "0.590 with 8 examples is too low"),
        ("rules", [0.3, 0.81, 0.8], "does not grow"),
        ("shuffled", [0.3, 0.37, 0.3], "shuffled, seed 1: accuracy 0.370 is above chance"),
    ],
)
def test_each_claim_can_fail(arm, accuracies, message):
    (wrong,) = failures(**{arm: accuracies})
    assert message in wrong


@pytest.mark.parametrize(("right", "count"), [(0, 20), (7, 20), (200, 200)])
def test_intervals_are_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = tool.interval([True] * right + [False] * (count - right))
    assert found == pytest.approx([right / count, expected.low, expected.high], abs=2e-4)


def test_scores_are_sums_over_the_answers_tokens():
    tokenizer = train_tokenizer(["ab"], 257)

    class Model(torch.nn.Module):
        """The next token is the byte after this one with probability 1/2, all others share the rest."""

        def forward(self, tokens, positions, mask):
            probability = torch.full((*tokens.shape, 384), 0.5 / 256)  # the last rows are no tokens
            names = tokenizer.encode("".join(map(chr, range(33, 127))))
            after = dict(pairwise(names))
            for place in torch.cartesian_prod(*map(torch.arange, tokens.shape)):
                if (token := int(tokens[tuple(place)])) in after:
                    probability[*place, after[token]] = 0.5
            return probability.log()

    found = tool.score_all(Model(), tokenizer, [("xa", "bc"), ("a", "b"), ("1a", "bd"), ("abcab", "q")])
    other = 0.5 / 256
    expected = torch.tensor([0.25, 0.5, 0.5 * other, other], dtype=torch.float64)
    totals = torch.tensor([2, 1, 2, 1]) * torch.tensor(0.5 + 256 * other - other + other, dtype=torch.float64).log()
    assert found == pytest.approx((expected.log() - totals).tolist(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_that_is_too_short_is_told_with_its_figures(tmp_path, monkeypatch, capsys):
    small = ["--seeds", "5", "--tokens", "40960", "--documents", "2000", "--questions", "20", "--ranks", "1"]
    files = ["--folder", f"{tmp_path}/runs", "--output", f"{tmp_path}/found.json"]
    monkeypatch.setattr("sys.argv", ["prove_in_context.py", *small, *files, "--shots", "0", "8"])
    with pytest.raises(MegaGPTError, match=r"rules, seed 5: accuracy .* with 8 examples is too low"):
        tool.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(one["seed"], one["arm"]) for one in found["runs"]] == [(5, "rules"), (5, "shuffled")]
    assert "shuffled, seed 5" in capsys.readouterr().out
    for one in found["runs"]:
        known, kinds = one["kinds"][tool.KNOWN], [one["kinds"][kind] for kind in tool.KINDS]
        for count in ("0", "8"):
            mean = sum(kind["accuracy"][count][0] for kind in kinds) / len(kinds)
            assert known["accuracy"][count][0] == pytest.approx(mean, abs=1e-3)
    monkeypatch.setattr("sys.argv", ["prove_in_context.py", *small, *files, "--tokens", "81920"])
    with pytest.raises(ConfigError, match="was made with --tokens 40960"):
        tool.main()


@pytest.mark.parametrize(("shots", "message"), [("1 8", "begin with 0"), ("0 8 4", "ascending"), ("0 16", "has 15")])
def test_shots_that_cannot_be_asked_are_refused(monkeypatch, shots, message):
    monkeypatch.setattr("sys.argv", ["prove_in_context.py", "--shots", *shots.split()])
    with pytest.raises(ConfigError, match=message):
        tool.main()
