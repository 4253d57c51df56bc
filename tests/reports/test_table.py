from __future__ import annotations

from pyengine.reports.table import table

ROWS = [
    {"round": 0, "eval/objective/scores": 0.25, "eval/objective/scores_stderr": 0.05},
    {"round": 1, "objective/scores": 0.5, "objective/kl": 0.0, "pairs/pairs": 8, "loss": 0.6931},
    {"round": 2, "objective/scores": None, "objective/kl": 1.5, "pairs/pairs": 0},
]


def test_table_has_a_line_a_round_and_only_columns_in_use():
    heading, *lines = table(ROWS).splitlines()
    assert heading.split() == ["round", "reward", "held-out", "kl", "loss", "pairs"]
    assert [line.split() for line in lines] == [
        ["0", "-", "+0.250", "-", "-", "-"],
        ["1", "+0.500", "-", "0.00", "0.6931", "8"],
        ["2", "-", "-", "1.50", "-", "0"],
    ]
