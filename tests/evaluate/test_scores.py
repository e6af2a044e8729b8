"""Metrics of a reward model: shares of pairs in order, and calibration, against what can be counted by hand."""

import numpy as np
import pytest

from megagpt.evaluate.scores import calibration, in_order, length_balanced


def test_a_tie_is_half_a_success():
    assert in_order(np.array([2.0, -1.0, 0.0, 3.0])) == (2 + 0.5) / 4


def test_confidences_that_come_true_are_calibrated():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    right = rng.random(200_000) < confidence
    margins = np.log(confidence / (1 - confidence)) * np.where(right, 1, -1)
    found = calibration(margins)
    assert found["calibration_error"] < 0.01
    assert sum(part["pairs"] for part in found["reliability"]) == 200_000
    overconfident = calibration(4 * margins)
    assert overconfident["calibration_error"] == pytest.approx(
        np.mean(1 / (1 + np.exp(-4 * np.abs(margins)))) - np.mean(right), abs=0.01
    )


def test_the_error_is_the_distance_of_confidence_and_accuracy():
    margins = np.log(0.72 / 0.28) * np.array([1, 1, 1, -1])
    assert calibration(margins)["calibration_error"] == pytest.approx(abs(0.72 - 0.75))
    assert calibration(margins)["reliability"] == [{"confidence": pytest.approx(0.72), "accuracy": 0.75, "pairs": 4}]


def test_length_alone_is_chance_where_lengths_are_balanced():
    longer = np.array([5, 3, 8, 1, -2, 0])
    assert length_balanced(longer.astype(float), longer) == {"length_balanced_accuracy": 0.5}
    right_but_once = np.array([1.0, 1, -1, 1, 1, 1])
    assert length_balanced(right_but_once, longer)["length_balanced_accuracy"] == pytest.approx((3 / 4 + 1) / 2)
    assert length_balanced(right_but_once, np.abs(longer)) == {}
