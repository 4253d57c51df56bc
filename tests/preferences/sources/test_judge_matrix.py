"""Win rates and matrices of all pairs, and what has no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scripted_judge import group_of

from pyengine.preferences.comparators.comparator import Compared, Duel
from pyengine.preferences.sources.judge_matrix import JudgeMatrix


class Table:
    """Answers from a table, and nothing where it has none."""

    name = "table"

    def __init__(self, table: dict[tuple[int, int], float]) -> None:
        self.table, self.asked = table, list[Duel]()

    def compare(self, groups: Sequence[Any], duels: Sequence[Duel]) -> Compared:
        self.asked += duels
        found = [self.table.get((d.first, d.second)) for d in duels]
        counts = {"judgements": 4.0, "first_place": 3.0}
        return Compared(found, ["[table] no"] * found.count(None), counts)


P = {(0, 1): 0.75, (1, 0): 0.5, (0, 2): 1.0, (2, 0): 0.0}


def test_both_orders_as_they_are() -> None:
    table = Table(P)
    feedback = JudgeMatrix(table)([group_of("x", "y", "z"), group_of("x"), group_of()])
    assert len(table.asked) == 6
    assert feedback.preference_matrix == [
        [[0.5, 0.75, 1.0], [0.5, 0.5, None], [0.0, None, 0.5]], [[None]], []
    ]  # fmt: skip
    assert feedback.rewards == [[0.875, 0.5, 0.0], [None], []]
    assert feedback.columns["win_rate"] == feedback.rewards
    assert feedback.status[1] == ["abstain"]
    assert feedback.counts_by_name["comparisons"] == 6
    assert feedback.counts_by_name["first_place_mean"] == 0.75


def test_one_order_and_a_response_without_a_verdict() -> None:
    table = Table({(0, 1): 0.75})
    feedback = JudgeMatrix(table, orders="one")([group_of("x", "y", "z")])
    assert [tuple(d) for d in table.asked] == [(0, 0, 1), (0, 0, 2), (0, 1, 2)]
    assert feedback.rewards == [[0.75, 0.25, None]]
    assert feedback.status == [["value", "value", "error"]]
    matrix = feedback.preference_matrix
    assert matrix is not None
    assert matrix[0] == [[0.5, 0.75, None], [0.25, 0.5, None], [None, None, None]]


def test_what_it_gives() -> None:
    assert JudgeMatrix(Table(P)).gives.matrix
    assert JudgeMatrix(Table(P)).gives.columns == ("win_rate",)
    with pytest.raises(ValueError, match="orders must be one of both, one but is 'none'"):
        JudgeMatrix(Table(P), orders="none")  # type: ignore[arg-type]
