"""Rankings of one round: Borda, enhanced Borda, win rate, Bradley-Terry, sparse windows."""

from __future__ import annotations

import math

import pytest
from duels_by_hand import by_strength, noisy, play, silent_about

from pyengine.errors import ConfigError
from pyengine.preferences.bradley_terry_model import strengths
from pyengine.preferences.rankings.borda import Borda
from pyengine.preferences.rankings.bradley_terry import BradleyTerry
from pyengine.preferences.rankings.enhanced_borda import EnhancedBorda
from pyengine.preferences.rankings.sparse_windows import SparseWindows
from pyengine.preferences.rankings.win_rate import WinRate

#       0 over 1 surely, 1 over 2, 0 and 2 alike
TABLE = [[0.5, 0.9, 0.5], [0.1, 0.5, 0.7], [0.5, 0.3, 0.5]]


def test_borda_sums_probabilities_or_wins():
    """0: .9 + .5; 1: .1 + .7; 2: .5 + .3, and 1 + 1/2, 0 + 1, 1/2 + 0."""
    standing, rounds = play(Borda(), TABLE)
    assert standing.scores == pytest.approx([1.4, 0.8, 0.8])
    assert rounds == [[(0, 1), (0, 2), (1, 2)]]
    assert play(Borda(points="wins"), TABLE)[0].scores == [1.5, 1.0, 0.5]


def test_borda_of_missing_verdicts_is_scaled_and_one_without_any_has_none():
    standing, _ = play(Borda(), silent_about(TABLE, (0, 2)))
    assert standing.scores == pytest.approx([0.9 * 2, 0.8, 0.3 * 2])
    standing, _ = play(Borda(), silent_about(TABLE, (0, 2), (0, 1)))
    assert standing.scores == [None, pytest.approx(0.7 * 2), pytest.approx(0.3 * 2)]
    assert standing.order == [1, 2]


def test_enhanced_borda_counts_along_chains():
    """0 beats 1, 1 beats 2, and 0 against 2 got no verdict: the chain makes 0 the best."""
    standing, _ = play(EnhancedBorda(), silent_about(TABLE, (0, 2)))
    assert standing.scores == [1.0, 0.5, 0.0]


def test_a_cycle_is_put_in_order_by_soft_borda():
    """Each reaches both others; mean P .6 (.9, .3), .5 (.1, .9) and .4 (.7, .1)."""
    table = [[0.5, 0.9, 0.3], [0.1, 0.5, 0.9], [0.7, 0.1, 0.5]]
    assert play(EnhancedBorda(), table)[0].scores == [1.0, 0.5, 0.0]


def test_equal_in_both_have_one_rank():
    """(rank - 1) / (n - 1): 0 and 2 above 1, which lost to both."""
    table = [[0.5, 0.9, 0.5], [0.1, 0.5, 0.1], [0.5, 0.9, 0.5]]
    assert play(EnhancedBorda(), table)[0].scores == [1.0, 0.0, 1.0]


def test_win_rate_is_the_mean_over_opponents():
    standing, _ = play(WinRate(), TABLE)
    assert standing.scores == pytest.approx([0.7, 0.4, 0.4])
    assert WinRate().asks_all_pairs
    assert not WinRate(opponents=2).asks_all_pairs


@pytest.mark.parametrize("ranking", [WinRate(opponents=2), BradleyTerry(opponents=2)])
def test_drawn_opponents_are_twice_as_many_for_each(ranking):
    """A circle by lot: 2 duels started by each of 9 responses, 18 in one round."""
    standing, [duels] = play(ranking, by_strength([float(k) for k in range(9)]))
    met = [sum(k in duel for duel in duels) for k in range(9)]
    assert met == [4] * 9
    assert len({frozenset(duel) for duel in duels}) == standing.comparisons == 18
    assert play(ranking, TABLE)[1] == [[(0, 1), (0, 2), (1, 2)]]  # there are no more


def test_bradley_terry_strengths_of_two_solve_the_slope():
    """s, -s with sigmoid(2 s) - p + prior s = 0: p = 0.8, prior 0.1."""
    s, other = strengths(2, [(0, 1, 0.8)], prior=0.1)
    assert other == pytest.approx(-s)
    assert 1 / (1 + math.exp(-2 * s)) - 0.8 + 0.1 * s == pytest.approx(0, abs=1e-9)


def test_bradley_terry_finds_the_strengths_that_made_the_table():
    truth = [-1.5, 0.0, 0.25, 1.25]
    standing, _ = play(BradleyTerry(prior=1e-9), by_strength(truth))
    assert standing.scores == pytest.approx(truth, abs=1e-6)
    assert standing.order == [3, 2, 1, 0]


def test_one_that_always_wins_has_a_finite_strength():
    [best, *_], extremes = strengths(3, [(0, 1, 1.0), (0, 2, 1.0)], 0.1), [0.0, 1.0]
    assert 0 < best < 10
    assert math.isfinite(strengths(2, [(0, 1, p) for p in extremes], 1e-6)[0])


def test_bradley_terry_knows_whom_one_met():
    """1 beat the strong 0, 3 beat the weak 2, by as much: win rates are alike, strengths not."""
    table = silent_about(by_strength([2.0, 2.5, -2.5, -2.0]), (0, 3), (1, 2), (1, 3))
    rates = play(WinRate(), table)[0].scores
    assert rates[1] == pytest.approx(rates[3])
    fit = play(BradleyTerry(), table)[0].scores
    assert fit[1] > fit[0] > fit[3] > fit[2]


@pytest.mark.parametrize(
    ("ranking", "duels"),
    [
        (SparseWindows(window="neighbourhood", size=1), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]),
        (SparseWindows(size=1, step=2), [(0, 2), (1, 3), (2, 4), (3, 0), (4, 1)]),
        # 2 and 3 are as near to n / (size + 1) = 2.5.
        (SparseWindows(size=1), [(0, 2), (1, 3), (2, 4), (3, 0), (4, 1)]),
    ],
)
def test_windows_by_hand(ranking, duels):
    standing, rounds = play(ranking, by_strength([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert rounds == [duels]
    assert standing.comparisons == 5


def test_random_windows_are_as_many_and_drawn_by_the_seed():
    ranking, table = SparseWindows(window="random", size=2), by_strength([0.0] * 9)
    [a], [b], [c] = (play(ranking, table, seed)[1] for seed in (1, 1, 2))
    assert a == b != c
    assert len({frozenset(duel) for duel in a}) == 18


def test_windows_aggregate_by_sum_or_by_strength():
    """Neighbours of a circle 0 < 1 < 2: means (.27 + .12) / 2, ..., strengths as they are."""
    table = by_strength([0.0, 1.0, 2.0])
    mean = play(SparseWindows(window="neighbourhood", size=1), table)[0].scores
    assert mean[0] == pytest.approx((table[0][1] + table[0][2]) / 2)
    fit = SparseWindows(window="neighbourhood", size=1, aggregate="bradley_terry", prior=1e-9)
    assert play(fit, table)[0].scores == pytest.approx([-1.0, 0.0, 1.0], abs=1e-6)


def test_options_that_would_do_nothing_are_refused():
    with pytest.raises(ConfigError, match="step is used where window is 'skip'"):
        SparseWindows(window="random", step=2)
    with pytest.raises(ConfigError, match="prior is used where aggregate is 'bradley_terry'"):
        SparseWindows(prior=0.5)


@pytest.mark.parametrize("ranking", [Borda(), EnhancedBorda(), WinRate(), BradleyTerry()])
def test_all_pairs_once_find_the_best_and_no_verdict_no_score(ranking):
    truth, table = noisy(12, seed=5, noise=0.0)
    standing, [duels] = play(ranking, table)
    assert len({frozenset(duel) for duel in duels}) == len(duels) == 66
    assert standing.order == sorted(range(12), key=lambda k: -truth[k])
    nothing, _ = play(ranking, [[None] * 3] * 3)
    assert (nothing.scores, nothing.order) == ([None] * 3, [])
    assert play(ranking, [])[0].scores == []
    assert play(ranking, [[0.5]])[0].scores == [None]


def test_the_step_of_windows_joins_all():
    """n = 9, size 2: a step of 3 would make three circles of three."""
    _, [duels] = play(SparseWindows(), by_strength([0.0] * 9))
    assert duels[:2] == [(0, 2), (0, 4)]
