"""Swiss: who meets whom, scores, byes, missing verdicts."""

from __future__ import annotations

import pytest
from duels_by_hand import by_strength, play, silent_about

from pyengine.preferences.rankings.swiss import Swiss


def test_winners_meet_winners():
    standing, rounds = play(Swiss(), by_strength([0.0, 1.0, 2.0, 3.0]))
    assert len(rounds) == 2
    first, second = rounds
    winners = {max(duel) for duel in first}
    assert set(second[0]) == winners
    assert set(second[1]) == {0, 1, 2, 3} - winners
    # 3 won both, 0 lost both, the others won one of two.
    assert standing.scores == [0.0, 0.5, 0.5, 1.0]
    assert standing.order[0] == 3
    assert standing.order[-1] == 0


def test_no_two_meet_twice_and_it_ends_when_all_have_met():
    standing, rounds = play(Swiss(rounds=20), by_strength([float(k) for k in range(6)]))
    asked = [frozenset(duel) for round_ in rounds for duel in round_]
    assert len(asked) == len(set(asked)) == standing.comparisons == 15
    assert all(len({k for duel in r for k in duel}) == 2 * len(r) for r in rounds)
    assert standing.order == [5, 4, 3, 2, 1, 0]


def test_one_sits_out_without_a_point():
    """3 responses, 2 rounds: the score is a share of duels, not of rounds."""
    standing, rounds = play(Swiss(), by_strength([0.0, 1.0, 2.0]))
    assert [len(r) for r in rounds] == [1, 1]
    assert standing.order[0] == 2
    assert standing.scores[0] == 0.0


def test_missing_verdicts_give_no_points_and_no_rematch():
    standing, rounds = play(Swiss(rounds=3), silent_about(by_strength([0.0, 1.0]), (0, 1)))
    assert rounds in ([[(0, 1)]], [[(1, 0)]])
    assert standing.scores == [None, None]
    assert standing.order == []


def test_ties_are_halves():
    assert play(Swiss(), [[0.5, 0.5], [0.5, 0.5]])[0].scores == [0.5, 0.5]


@pytest.mark.parametrize("n", [0, 1])
def test_nobody_to_meet(n):
    assert play(Swiss(), [[0.5] * n] * n)[0].scores == [None] * n
