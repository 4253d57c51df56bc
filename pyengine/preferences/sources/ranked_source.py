"""A tournament as a source: rewards from comparisons of a group's responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.keyed_draws import content, keyed_random
from pyengine.preferences.rankings.ranking import Pair, Ranked, first_round, rank
from pyengine.preferences.sources.ahead import GiveUp, compare_ahead, overlaps
from pyengine.preferences.sources.source import Gives
from pyengine.rules import WHOLE, Rule, check_fields, checked, or_none

TEXT = Rule("a text", lambda value: isinstance(value, str))

# Of a group: the responses that enter as one, by the first of them.
Entrants = list[list[int]]


@dataclass(frozen=True)
class RankedSource:
    """Rewards by rank: a ranking asks a comparator, each of its rounds once for all prompts.

    comparator    what says P(i is preferred to j)
    ranking       who is compared with whom, and the score that follows: the reward
    answer_after  responses that say the same after the last of these marks enter as one, by the
                  first of them, and share its score; "": that are the same; one without the mark
                  enters by itself. None: each enters
    seed          with prompt and responses the key of what the ranking draws
    Responses without tokens do not enter. One without a verdict has no reward: an error where a
    comparison of it failed, else an abstention. Where the ranking asks for all pairs, the feedback
    has their matrix, with no cell of a pair that got no verdict or was not asked for.
    """

    name: ClassVar[str] = "ranked"
    comparator: Any = bound("comparator")
    ranking: Any = bound("ranking")
    answer_after: str | None = checked(None, or_none(TEXT))
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def gives(self) -> Gives:
        """Rewards, and the matrix of a ranking that asks for all pairs."""
        return Gives(matrix=bool(getattr(self.ranking, "asks_all_pairs", False)))

    @property
    def overlaps(self) -> bool:
        """See AsksAhead; only the first round of duels is known ahead."""
        return overlaps(self.comparator)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        _, entered = self._entered(groups)
        duels = first_round(entered, self.ranking, [self._seed(group) for group in entered])
        return compare_ahead(self.comparator, entered, duels)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """One tournament a group, all of them side by side."""
        fields, entered = self._entered(groups)
        found = rank(entered, self.comparator, self.ranking, [self._seed(g) for g in entered])
        rewards: list[list[float | None]] = [[None] * len(g.responses) for g in groups]
        status: list[list[SampleStatus]] = [["abstain"] * len(g.responses) for g in groups]
        for g, field in enumerate(fields):
            failed = {k for pair, p in found.answers[g].items() if p is None for k in pair}
            for k, (same, score) in enumerate(zip(field, found.standings[g].scores, strict=True)):
                for response in same:
                    rewards[g][response] = score
                    if score is not None:
                        status[g][response] = "value"
                    elif k in failed:
                        status[g][response] = "error"
        feedback = Feedback(rewards, status, found.errors)
        if self.gives.matrix:
            feedback.preference_matrix = [
                matrix(found.answers[g], field, len(groups[g].responses))
                for g, field in enumerate(fields)
            ]
        feedback.counts_by_name = found.counts | _counts(found, fields)
        return feedback

    def _entered(self, groups: Sequence[Group]) -> tuple[list[Entrants], list[Group]]:
        """Who enters, and the groups of them."""
        fields = [entrants(group, self.answer_after) for group in groups]
        # Groups of their own, also where all responses enter: what a comparator remembers of them
        # ends with this call, so that a judge that failed is asked anew.
        return fields, [
            replace(group, responses=[group.responses[same[0]] for same in field])
            for group, field in zip(groups, fields, strict=True)
        ]

    def _seed(self, group: Group) -> int:
        return keyed_random(self.seed, self.name, *content(group)).getrandbits(63)


def _counts(found: Ranked, fields: Sequence[Entrants]) -> dict[str, float]:
    silent = sum(p is None for answers in found.answers for p in answers.values())
    return {
        "comparisons": float(sum(found.comparisons)),
        "rounds": float(found.calls),
        "no_verdict": float(silent),
        "identical": float(sum(len(same) - 1 for field in fields for same in field)),
    }


def entrants(group: Group, answer_after: str | None) -> Entrants:
    """Responses that enter as one, in order; those without tokens are in none of them."""
    found: dict[int | str, list[int]] = {}
    for k, response in enumerate(group.responses):
        if not response.token_ids:
            continue
        key: int | str = k
        if answer_after == "" and response.text is not None:
            key = response.text
        elif answer_after and response.text is not None:
            _, mark, answer = response.text.rpartition(answer_after)
            key = answer.strip() if mark else k
        found.setdefault(key, []).append(k)
    return list(found.values())


def matrix(
    answers: Mapping[Pair, float | None], field: Entrants, size: int
) -> list[list[float | None]]:
    """P of every two responses whose entrants met; 1/2 of a response against itself."""
    entered = {k for same in field for k in same}
    table: list[list[float | None]] = [
        [0.5 if i == j and i in entered else None for j in range(size)] for i in range(size)
    ]
    for (a, b), p in answers.items():
        if p is not None:
            for i in field[a]:
                for j in field[b]:
                    table[i][j], table[j][i] = p, 1 - p
    return table
