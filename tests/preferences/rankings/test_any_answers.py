"""What holds of every ranking, whatever a comparator answers: ties, cycles, silence, extremes."""

from __future__ import annotations

import math
import random

import pytest
from duels_by_hand import play

from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.rankings.scoreboard import Scoreboard, standing, win_points

MORE = [
    ("win_rate", {"opponents": 1}), ("bradley_terry", {"opponents": 1, "prior": 1e-3}),
    ("curatron", {"opponents": 2}), ("copeland", {"at_once": 3, "transitive": True}),
    ("sparse_windows", {"window": "random", "aggregate": "bradley_terry"}),
    ("pairs_beam", {"prob_gap": 0.5, "beam": 3}),
]  # fmt: skip


def random_table(draw, n):
    table = [[0.5] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            p = draw.choice((None, None, 0.0, 0.3, 0.5, 0.5, 0.9, 1.0))
            table[i][j], table[j][i] = p, None if p is None else 1 - p
    return table


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in RANKINGS.names()), *MORE],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_it_ends_and_scores_what_was_judged_and_nothing_else(name, options):
    ranking, draw = RANKINGS.make(name, **options), random.Random(f"{name}{options}")
    for n in (0, 1, 2, 3, 5, 8, 8, 11):
        table = random_table(draw, n)
        found, rounds = play(ranking, table, seed=n)
        pairs = [pair for round_ in rounds for pair in round_]
        assert all(i != j for i, j in pairs)
        judged = {k for i, j in pairs if table[i][j] is not None for k in (i, j)}
        scored = {k for k, score in enumerate(found.scores) if score is not None}
        # Along chains Copeland's winner can have points that nobody was asked for.
        assert scored == judged or (options.get("transitive") and judged <= scored)
        assert all(math.isfinite(found.scores[k]) for k in scored)
        assert sorted(found.order) == sorted(scored)
        ordered = [found.scores[k] for k in found.order]
        assert ordered == sorted(ordered, reverse=True)
        assert play(ranking, table, seed=n)[1] == rounds


def test_a_pair_asked_in_both_orders_has_the_mean():
    """.9 that 0 is over 1, .4 that 1 is over 0: (.9 + .6) / 2."""
    board = Scoreboard(3)
    round_ = board.ask([(0, 1), (1, 0), (1, 2)])
    next(round_)
    with pytest.raises(StopIteration):
        round_.send([0.9, 0.4, None])
    assert board.probability(0, 1) == pytest.approx(0.75)
    assert board.probability(1, 0) == pytest.approx(0.25)
    assert (board.probability(1, 2), board.asked(2, 1), board.asked(0, 2)) == (None, True, False)
    assert board.judged() == [0, 1]
    assert board.means() == [pytest.approx(0.75), pytest.approx(0.25), None]
    assert board.means(win_points) == [1.0, 0.0, None]
    assert standing([None, 1.0, 2.0, 1.0]).order == [2, 1, 3]
