"""A tournament played against a table of probabilities, and everything it asked for."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace


def play(ranking, table, seed=0):
    """(standing, the rounds' duels) where P(i is preferred to j) is table[i][j].

    The standing also has its `comparisons` and `rounds`.
    """
    rounds, tournament, answers = [], ranking.tournament(len(table), seed), None
    while True:
        try:
            duels = tournament.send(answers)
        except StopIteration as end:
            return SimpleNamespace(
                scores=end.value.scores, order=end.value.order, rounds=len(rounds),
                comparisons=sum(map(len, rounds)),
            ), rounds  # fmt: skip
        assert duels, "a round without a duel"
        rounds.append(list(duels))
        answers = [table[i][j] for i, j in duels]


def by_strength(strengths, scale=1.0):
    """P = sigmoid((s_i - s_j) / scale)."""
    return [[1 / (1 + math.exp(min((b - a) / scale, 700))) for b in strengths] for a in strengths]


def noisy(n, seed, noise):
    """P of random strengths whose difference is seen with normal noise, one draw a pair."""
    draw = random.Random(seed)
    truth = [draw.gauss(0, 1) for _ in range(n)]
    table = [[0.5] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            gap = truth[i] - truth[j] + noise * draw.gauss(0, 1)
            table[i][j] = 1 / (1 + math.exp(-gap))
            table[j][i] = 1 - table[i][j]
    return truth, table


def silent_about(table, *pairs):
    """The same without a verdict on these pairs."""
    table = [list(row) for row in table]
    for i, j in pairs:
        table[i][j] = table[j][i] = None
    return table
