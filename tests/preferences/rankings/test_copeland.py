"""Copeland's winner: few duels, ties, chains, missing verdicts."""

from __future__ import annotations

import random

import pytest
from duels_by_hand import by_strength, play, silent_about

from pyengine.errors import ConfigError
from pyengine.preferences.rankings.copeland import Copeland, chains


def points(table, margin):
    """Copeland's scores of all pairs."""
    n = len(table)
    return [
        sum(
            0.5 if abs(table[i][j] - 0.5) <= margin else float(table[i][j] > 0.5)
            for j in range(n)
            if j != i
        )
        for i in range(n)
    ]


def test_the_duels_by_hand():
    """0 loses to 3. 1 and 2 could still reach 3 points; 3 needs no more than its own 3.

    0 (potential 3, first of equals) meets 1 (of equals the first): 1 point. Again 0, points 1,
    potential 3: meets 2, then 3, and loses: 2 points. 3 has 1 point and can reach 3, as 1 and 2
    cannot (2 each): meets 1 and 2, and has 3 points; nobody can pass it.
    """
    table = by_strength([2.0, 0.0, 1.0, 3.0])
    standing, rounds = play(Copeland(), table)
    assert rounds == [[(0, 1)], [(0, 2)], [(0, 3)], [(3, 1)], [(3, 2)]]
    assert standing.scores == [2.0, 0.0, 0.0, 3.0]
    assert standing.order[0] == 3
    assert standing.comparisons == 5  # of 6


@pytest.mark.parametrize("options", [{}, {"at_once": 4}, {"transitive": True}])
def test_the_winner_is_one_of_all_pairs(options):
    """Also where wins go in circles; never more duels than there are pairs."""
    for seed in range(40):
        draw = random.Random(seed)
        n = draw.randint(2, 9)
        if options.get("transitive"):  # chains hold of strengths, with ties of equal ones
            table = by_strength([float(draw.randint(0, 3)) for _ in range(n)])
        else:
            table = [[0.5] * n for _ in range(n)]
            for i in range(n):
                for j in range(i):
                    table[i][j] = draw.choice((0.0, 0.5, 1.0))
                    table[j][i] = 1 - table[i][j]
        standing, rounds = play(Copeland(**options), table)
        score = points(table, 0.0)
        assert score[standing.order[0]] == max(score)
        asked = [frozenset(duel) for round_ in rounds for duel in round_]
        assert len(asked) == len(set(asked)) <= n * (n - 1) // 2


def test_near_a_half_is_a_tie():
    table = [[0.5, 0.55], [0.45, 0.5]]
    assert play(Copeland(tie_margin=0.06), table)[0].scores == [0.5, 0.5]
    assert play(Copeland(), table)[0].scores == [1.0, 0.0]


def test_more_at_once_take_fewer_rounds():
    table = by_strength([float(k) for k in range(12)])
    one, _ = play(Copeland(), table)
    four, rounds = play(Copeland(at_once=4), table)
    assert len(rounds) < one.rounds
    assert four.order[0] == one.order[0] == 11


def test_chains_are_counted_without_asking():
    """Of a total order of 12 all pairs are 66 duels."""
    table = by_strength([float((5 * k) % 12) for k in range(12)])
    standing, _ = play(Copeland(transitive=True), table)
    assert standing.order[0] == max(range(12), key=lambda k: (5 * k) % 12)
    assert standing.comparisons < play(Copeland(), table)[0].comparisons < 66


def test_chains_by_hand():
    """0 over 1, 1 ties with 2: 0 over 2 by a win, 1 and 2 reach each other without one."""
    weak, strict = chains([0b011, 0b110, 0b110], [0b010, 0, 0])
    assert weak == [0b111, 0b110, 0b110]
    assert strict == [0b110, 0, 0]


def test_a_duel_without_a_verdict_is_not_waited_for():
    table = silent_about(by_strength([0.0, 1.0, 2.0]), (0, 2), (1, 2))
    standing, _ = play(Copeland(), table)
    assert standing.scores == [0.0, 1.0, None]
    assert standing.order == [1, 0]


def test_a_margin_of_a_half_is_refused():
    with pytest.raises(ConfigError, match=r"tie_margin must be in \[0, 0\.5\)"):
        Copeland(tie_margin=0.5)
