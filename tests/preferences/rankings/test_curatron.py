"""CURATRON: low-rank logits from missing and corrupted comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from duels_by_hand import by_strength, play, silent_about

from pyengine.preferences.rankings.curatron import Curatron
from pyengine.preferences.rankings.low_rank import project, robust_low_rank
from pyengine.preferences.rankings.win_rate import WinRate

TRUTH = [2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0]


def test_clean_probabilities_are_their_own():
    """Mean P over the others, as the win rate has it."""
    table = by_strength(TRUTH)
    standing, [duels] = play(Curatron(), table)
    assert len(duels) == 36
    assert standing.scores == pytest.approx(play(WinRate(), table)[0].scores, abs=1e-6)


def test_corrupted_comparisons_drop_out():
    """The worst is said to beat the four best: its win rate is no longer the worst, here it is."""
    table = by_strength(TRUTH)
    for j in range(3):
        table[8][j], table[j][8] = 0.99, 0.01
    rates, _ = play(WinRate(), table)
    assert rates.order[-1] != 8
    standing, _ = play(Curatron(), table)
    assert standing.order == list(range(9))
    assert standing.scores == pytest.approx(play(WinRate(), by_strength(TRUTH))[0].scores, abs=0.01)


def test_missing_comparisons_are_completed():
    """4 of 36 pairs without a verdict."""
    table = silent_about(by_strength(TRUTH), (0, 8), (1, 4), (2, 7), (3, 5))
    standing, _ = play(Curatron(), table)
    assert standing.scores == pytest.approx(play(WinRate(), by_strength(TRUTH))[0].scores, abs=0.01)
    assert Curatron().asks_all_pairs
    assert not Curatron(opponents=3).asks_all_pairs


def test_one_without_a_verdict_has_no_score():
    table = silent_about(by_strength([2.0, 1.0, 0.0]), (0, 1), (0, 2))
    standing, _ = play(Curatron(), table)
    assert standing.scores[0] is None
    assert standing.order == [1, 2]
    assert standing.scores[1] == pytest.approx(1 / (1 + np.exp(-1)))
    assert play(Curatron(), [[0.5]])[0].scores == [None]


def test_the_projection_keeps_the_largest_values():
    matrix = np.diag([3.0, 2.0, 1.0])
    assert project(matrix, 2) == pytest.approx(np.diag([3.0, 2.0, 0.0]))


def test_an_entry_that_is_off_is_called_wrong():
    """A matrix of ones with one entry of 5: rank 1 again, and only that entry is set aside."""
    observed = np.ones((8, 8))
    observed[1, 4] = 5.0
    low, wrong = robust_low_rank(observed, np.ones((8, 8), dtype=bool), 1, tolerance=0.5)
    assert low == pytest.approx(np.ones((8, 8)), abs=1e-6)
    assert np.argwhere(wrong).tolist() == [[1, 4]]
