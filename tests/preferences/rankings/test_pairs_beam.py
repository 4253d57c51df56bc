"""PairS: the merge sort, its beam, and how many comparisons it takes."""

from __future__ import annotations

import math

import pytest
from duels_by_hand import by_strength, noisy, play, silent_about

from pyengine.errors import ConfigError
from pyengine.preferences.rankings.pairs_beam import PairsBeam
from pyengine.preferences.rankings.scoreboard import Scoreboard


def merged(ranking, table, a, b):
    """The order of two runs merged, and the rounds it asked for."""
    board, rounds = Scoreboard(len(table)), []
    merge = ranking._merge(board, a, b)
    while True:
        try:
            duels = next(merge)
        except StopIteration as end:
            return list(end.value), rounds
        rounds.append(duels)
        asking = board.ask(duels)
        next(asking)
        with pytest.raises(StopIteration):
            asking.send([table[i][j] for i, j in duels])


def test_a_sure_comparator_sorts_in_a_merge_sorts_comparisons():
    for n in (2, 5, 8, 16, 31):
        table = by_strength([math.sin(9 * k) for k in range(n)], scale=1e-3)
        standing, rounds = play(PairsBeam(), table, seed=n)
        assert standing.order == sorted(range(n), key=lambda k: -math.sin(9 * k))
        assert sorted(standing.scores) == list(range(n))
        assert standing.comparisons <= n * math.ceil(math.log2(n))
        assert standing.rounds == len(rounds)


def test_merges_of_one_level_share_rounds():
    """8 responses: 4 merges in 1 round, 2 in at most 3, the last in at most 7."""
    _, rounds = play(PairsBeam(), by_strength([float(k) for k in range(8)], scale=1e-3))
    assert len(rounds[0]) == 4
    assert len(rounds) <= 1 + 3 + 7


def test_the_beam_repairs_what_greed_would_take():
    """Runs (0, 1) and (2, 3), P = .48 that 0 is over 2.

    Greedy takes 2, asks 0 against 3 (P = .45, so 3): 2 3 0 1, mean log (.52 * .55) / 2 = -.626.
    The beam also takes 0 and asks 1 against 2 (P = .02, so 2), then 1 against 3 (P = .02, so 3):
    0 2 3 1, mean log (.48 * .98 * .98) / 3 = -.258: the likelier order.
    """
    table = [[None] * 4 for _ in range(4)]
    for i, j, p in ((0, 2, 0.48), (0, 3, 0.45), (1, 2, 0.02), (1, 3, 0.02)):
        table[i][j], table[j][i] = p, 1 - p
    assert merged(PairsBeam(beam=1), table, [0, 1], [2, 3]) == ([2, 3, 0, 1], [[(0, 2)], [(0, 3)]])
    order, rounds = merged(PairsBeam(beam=4), table, [0, 1], [2, 3])
    assert order == [0, 2, 3, 1]
    assert rounds == [[(0, 2)], [(0, 3), (1, 2)], [(1, 3)]]


def test_only_unsure_comparisons_branch():
    """P = .3 is .2 off: followed both ways with a gap of .25 only."""
    table = [[0.5, None, 0.3], [None, 0.5, 0.1], [0.7, 0.9, 0.5]]
    assert merged(PairsBeam(prob_gap=0.1), table, [0, 1], [2])[1] == [[(0, 2)]]
    assert merged(PairsBeam(prob_gap=0.25), table, [0, 1], [2])[1] == [[(0, 2)], [(1, 2)]]


def test_a_comparison_without_a_verdict_keeps_the_order_and_one_without_any_has_no_score():
    table = silent_about(by_strength([0.0, 1.0, 2.0]), (0, 1), (1, 2))
    standing, _ = play(PairsBeam(), table)
    assert standing.scores[1] is None
    assert standing.order == [2, 0]
    assert (standing.scores[2], standing.scores[0]) == (1.0, 0.0)


def test_the_same_seed_asks_the_same():
    _, table = noisy(12, seed=1, noise=1.0)
    a, b, c = (play(PairsBeam(), table, seed) for seed in (1, 1, 2))
    assert a == b
    assert a[1] != c[1]


def test_impossible_outcomes_are_not_followed():
    """With a gap of 1/2 everything branches, but not to log 0."""
    standing, _ = play(PairsBeam(prob_gap=0.5), [[0.5, 1.0], [0.0, 0.5]])
    assert standing.order == [0, 1]
    with pytest.raises(ConfigError, match=r"prob_gap must be in \[0, 0\.5\]"):
        PairsBeam(prob_gap=0.6)
