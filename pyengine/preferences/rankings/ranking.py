"""What a ranking is, and the driver that asks for all prompts at once.

A ranking is a schedule of duels: it says which pairs of n responses it wants to know next, is told,
and goes on until it knows enough. Rounds of all groups are asked together, so that a judge sees one
batch a round however many prompts there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from pyengine.preferences.comparators.comparator import Comparator, Duel
from pyengine.preferences.feedback import MAX_ERRORS
from pyengine.preferences.groups import Group

Pair = tuple[int, int]
Tournament = Generator[list[Pair], list[float | None], "Standing"]


@dataclass
class Standing:
    """Where a group's responses stand.

    scores  of each response, higher is better; None where nothing is known of it
    order   those with a score, best first
    """

    scores: list[float | None]
    order: list[int]


class Ranking(Protocol):
    """A schedule of duels that ends in an order."""

    name: ClassVar[str]

    def tournament(self, n: int, seed: int) -> Tournament:
        """Yields the pairs (i, j) of a round, is sent P(i is preferred to j) of each, None where
        there is no verdict, and returns the standing. No round is empty.

        n     responses, >= 1
        seed  of what it draws: the same seed, the same duels for the same answers
        """


@dataclass
class Ranked:
    """Standings of groups, and what they cost.

    answers      [group]: P of each pair that was asked, the last answer
    comparisons  pairs asked, of each group
    rounds       of each group
    calls        batches that the comparator was asked
    """

    standings: list[Standing]
    answers: list[dict[Pair, float | None]]
    comparisons: list[int]
    rounds: list[int]
    calls: int = 0
    errors: list[str] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)


def first_round(groups: Sequence[Group], ranking: Ranking, seeds: Sequence[int]) -> list[Duel]:
    """What `rank` asks first, before any answer."""
    return [
        Duel(g, i, j)
        for g, group in enumerate(groups)
        if group.responses
        for i, j in next(ranking.tournament(len(group.responses), seeds[g]), ())
    ]


def rank(
    groups: Sequence[Group], comparator: Comparator, ranking: Ranking, seeds: Sequence[int]
) -> Ranked:
    """Runs a tournament among each group's responses, round by round over all groups.

    seeds  one for each group
    """
    running = {
        g: ranking.tournament(len(group.responses), seeds[g])
        for g, group in enumerate(groups)
        if group.responses
    }
    result = Ranked([Standing([], []) for _ in groups], [{} for _ in groups], [], [])
    result.comparisons, result.rounds = [0] * len(groups), [0] * len(groups)
    counts: Counter[str] = Counter()
    answers: dict[int, list[float | None] | None] = dict.fromkeys(running)
    while running:
        wanted: dict[int, list[Pair]] = {}
        for g, tournament in list(running.items()):
            try:
                told = answers[g]
                wanted[g] = next(tournament) if told is None else tournament.send(told)
            except StopIteration as stop:
                result.standings[g] = stop.value
                del running[g]
        if not wanted:
            break
        duels = [Duel(g, i, j) for g, pairs in wanted.items() for i, j in pairs]
        found = comparator.compare(groups, duels)
        result.calls += 1
        counts.update(found.counts)
        result.errors = [*result.errors, *found.errors][:MAX_ERRORS]
        told_all = iter(found.probabilities)
        for g, pairs in wanted.items():
            answers[g] = [next(told_all) for _ in pairs]
            result.answers[g] |= dict(zip(pairs, answers[g] or (), strict=True))
            result.comparisons[g] += len(pairs)
            result.rounds[g] += 1
    result.counts = dict(counts)
    return result
