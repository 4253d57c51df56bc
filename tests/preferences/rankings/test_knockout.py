"""Knockout: matches, rounds, byes, ties by lot, matches without a verdict."""

from __future__ import annotations

import math

import pytest
from duels_by_hand import by_strength, play, silent_about

from pyengine.errors import ConfigError
from pyengine.preferences.rankings.knockout import Knockout


def test_the_given_bracket_by_hand():
    """5 responses: (0,1) (2,3), 4 goes on; then 4 plays first: (4,1), 3 goes on; then (3,4)."""
    standing, rounds = play(Knockout(bracket="given"), by_strength([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert rounds == [[(0, 1), (2, 3)], [(4, 1)], [(3, 4)]]
    # 4 won round 3 last, 3 won round 1, 1 won round 1; 0 and 2 lost their first match.
    assert standing.scores == [0.0, 1.0, 0.0, 1.0, 3.0]
    assert standing.order == [4, 1, 3, 0, 2]
    assert (standing.comparisons, standing.rounds) == (4, 3)


@pytest.mark.parametrize("n", [2, 3, 7, 8, 16, 33, 64])
def test_n_minus_one_matches_in_log_n_rounds_find_the_best(n):
    standing, rounds = play(Knockout(), by_strength([math.sin(7 * k) for k in range(n)]), seed=n)
    assert standing.comparisons == n - 1
    assert standing.rounds == len(rounds) == math.ceil(math.log2(n))
    assert standing.order[0] == max(range(n), key=lambda k: math.sin(7 * k))
    assert max(standing.scores) == standing.rounds


def test_one_response_meets_nobody_and_has_no_score():
    standing, rounds = play(Knockout(), [[0.5]])
    assert (standing.scores, standing.order, rounds) == ([None], [], [])
    assert play(Knockout(), [])[0].scores == []


def test_a_seed_draws_one_bracket_and_another_seed_another():
    table = by_strength([0.0] * 8)
    first = [play(Knockout(), table, seed)[1][0] for seed in (3, 3, 4)]
    assert first[0] == first[1] != first[2]


def test_a_match_without_a_verdict_scores_neither():
    """(0,1) fails: whoever goes on by lot, the loser has no score; 2 beat 3 in round 1."""
    table = silent_about(by_strength([0.0, 0.0, 5.0, 1.0]), (0, 1))
    standing, rounds = play(Knockout(bracket="given"), table)
    through = rounds[1][0][0]
    assert standing.scores[2] == 2.0
    assert standing.scores[3] == 0.0
    assert standing.scores[through] == 0.0  # lost to 2
    assert standing.scores[1 - through] is None
    assert standing.order == [2, through, 3]
    assert standing.comparisons == 3


def test_a_tie_is_won_by_lot():
    winners = {play(Knockout(), [[0.5, 0.5], [0.5, 0.5]], seed)[0].order[0] for seed in range(20)}
    assert winners == {0, 1}


def test_a_bracket_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"\[knockout\] bracket must be one of random, given"):
        Knockout(bracket="seeded")
