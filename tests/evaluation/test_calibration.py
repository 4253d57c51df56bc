"""Calibration errors by hand, and what a bootstrap says of them."""

from __future__ import annotations

import pytest

from pyengine.errors import RequestError
from pyengine.evaluation.calibration import (
    Calibration,
    brier,
    expected_calibration_error,
    reliability,
)
from pyengine.evaluation.standard_errors import bootstrap_error, mean_and_error
from pyengine.preferences import Feedback, Group, Response

SAID = [0.1, 0.2, 0.5, 0.9, 1.0]
CAME = [0, 1, 0, 1, 1]


def test_bins_of_equal_width():
    # (0, 1/2]: .1 .2 .5, mean .8/3, one of three; (1/2, 1]: .9 1, mean .95, both.
    low, high = reliability(SAID, CAME, bins=2)
    assert (low.count, high.count) == (3, 2)
    assert (low.mean_probability, low.frequency) == (pytest.approx(0.8 / 3), pytest.approx(1 / 3))
    ece = expected_calibration_error(SAID, CAME, bins=2)
    assert ece == pytest.approx((3 * (1 / 3 - 0.8 / 3) + 2 * 0.05) / 5)


def test_bins_of_equal_mass():
    # Of five two bins get ranks 0 1 2 and 3 4; three bins 0 1, 2 3, 4.
    assert [b.count for b in reliability(SAID, CAME, 2, "mass")] == [3, 2]
    assert [b.count for b in reliability(SAID, CAME, 3, "mass")] == [2, 2, 1]
    gaps = 2 * abs(0.15 - 0.5) + 2 * abs(0.7 - 0.5) + 0
    assert expected_calibration_error(SAID, CAME, 3, "mass") == pytest.approx(gaps / 5)


def test_brier_and_ends_of_the_scale():
    assert brier([0.0, 1.0, 0.5], [0, 1, 1]) == pytest.approx(0.25 / 3)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0.0
    with pytest.raises(RequestError, match=r"probabilities\[1\] must be in \[0, 1\] but is 1.5"):
        brier([0.0, 1.5], [0, 1])
    with pytest.raises(RequestError, match="as many as probabilities, 1, but are 2"):
        reliability([0.5], [0, 1])
    with pytest.raises(RequestError, match="at least one but are empty"):
        expected_calibration_error([], [])


def test_the_part_pools_bins_and_draws_prompts():
    groups = [Group([1], [Response([1]), Response([2])]) for _ in range(3)]
    feedback = Feedback.from_rewards([[0, 1], [0, 1], [1, None]])
    feedback.columns["probability"] = [[0.1, 0.2], [0.5, 0.9], [1.0, 0.3]]
    part = Calibration(bins=2)
    figures = part(groups, feedback)
    pooled = expected_calibration_error(SAID, CAME, bins=2)
    assert figures["ece"].value == pytest.approx(pooled)
    assert figures["ece"].n == 3
    squares = [(0.01 + 0.64) / 2, (0.25 + 0.01) / 2, 0.0]
    assert figures["brier"].value == pytest.approx(sum(squares) / 3)
    assert part(groups, feedback) == figures
    assert Calibration(bins=2, seed=1)(groups, feedback)["ece"] != figures["ece"]
    with pytest.raises(RequestError, match=r"columns must have 'p' but has \['probability'\]"):
        Calibration(column="p")(groups, feedback)


def test_a_bootstrap_of_a_mean_has_the_mean_s_error():
    values = [float(i % 7) for i in range(60)]
    _, error = mean_and_error(values)
    drawn = bootstrap_error(lambda ks: sum(values[k] for k in ks) / len(ks), 60, "x", draws=400)
    assert drawn == pytest.approx(error, rel=0.15)
    assert bootstrap_error(lambda ks: 1.0, 1, "x") is None
