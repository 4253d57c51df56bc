"""What pairings by reward share: ties and equal texts are left out, labels may be soft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.preferences.logistic import sigmoid
from pyengine.preferences.pairings.pairing import Pairs, same_tokens, valid_rewards
from pyengine.rules import NOT_NEGATIVE, POSITIVE, SWITCH, check_fields, checked, one_of

Matrix = Sequence[Sequence[float | None]]
Pair = tuple[int, int]  # winner, loser


@dataclass(frozen=True)
class RankedPairing:
    """A pairing whose winner has the higher reward.

    min_margin   the reward difference must be greater than this, or the two are a tie
    probability  of the winner's being preferred: "certain" (1); "matrix", what the source's
                 preference matrix says of the two; "bradley_terry", the sigmoid of the reward
                 difference over `scale`
    scale        of "bradley_terry": the reward difference that makes odds of e to 1
    margins      whether comparisons have the reward difference as their margin
    Raises ConfigError; RequestError where "matrix" finds none.
    Source: soft labels, arXiv:2405.14103 (of a judge) and arXiv:2410.03145, eq. 6 (of scores).
    """

    name: ClassVar[str]
    counted: ClassVar[tuple[str, ...]] = ()  # counts beside "ties", "equal" and "too_few"
    min_margin: float = checked(0.0, NOT_NEGATIVE)
    probability: str = checked("certain", one_of("certain", "matrix", "bradley_terry"))
    scale: float = checked(1.0, POSITIVE)
    margins: bool = checked(False, SWITCH)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scale != 1.0 and self.probability != "bradley_terry":
            raise ConfigError(
                f"[{self.name}] scale is used where probability is 'bradley_terry' but is "
                f"{self.scale} with {self.probability!r}"
            )

    @property
    def rehearsal(self) -> RankedPairing:
        """The same without limits on margins: it is tried on rewards that are made up."""
        return replace(self, min_margin=0.0)

    def candidates(
        self, group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> Iterable[Pair]:
        """(winner, loser) of a group with two rewards or more; ties among them are left out."""
        raise NotImplementedError

    def kept(
        self, found: list[Pair], group: Group, rewards: dict[int, float], counts: Counter[str]
    ) -> list[Pair]:
        """Which of the pairs become comparisons, in their order."""
        return found

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> Pairs:
        """Comparisons group by group, and what was left out."""
        counts = Counter(dict.fromkeys(("ties", "equal", "too_few", *self.counted), 0))
        matrices = self._matrices(feedback, counts)
        comparisons: list[Comparison] = []
        for g, rewards in enumerate(valid_rewards(type(self).__name__, groups, feedback)):
            if len(rewards) < 2:
                counts["too_few"] += 1
                continue
            matrix = None if matrices is None else matrices[g]
            found = []
            for winner, loser in self.candidates(groups[g], rewards, counts):
                if not rewards[winner] - rewards[loser] > self.min_margin:
                    counts["ties"] += 1
                elif same_tokens(groups[g], winner, loser):
                    counts["equal"] += 1
                elif matrix is not None and matrix[winner][loser] is None:
                    counts["unknown"] += 1
                else:
                    found.append((winner, loser))
            for winner, loser in self.kept(found, groups[g], rewards, counts):
                gap = rewards[winner] - rewards[loser]
                p = self._probability(matrix, winner, loser, gap)
                margin = gap if self.margins else None
                comparisons.append(Comparison(g, winner, loser, p, margin))
        return Pairs(comparisons, dict(counts))

    def _matrices(self, feedback: Feedback, counts: Counter[str]) -> Sequence[Matrix] | None:
        if self.probability != "matrix":
            return None
        if feedback.preference_matrix is None:
            raise RequestError(
                f"[{self.name}] probability 'matrix' needs Feedback.preference_matrix but the "
                "source gives none"
            )
        counts["unknown"] = 0
        return feedback.preference_matrix

    def _probability(self, matrix: Matrix | None, winner: int, loser: int, gap: float) -> float:
        if matrix is not None:
            p = matrix[winner][loser]
            assert p is not None  # those were counted
            return p
        return sigmoid(gap / self.scale) if self.probability == "bradley_terry" else 1.0


def best_first(rewards: dict[int, float]) -> list[int]:
    """Responses in the order of their rewards, the first of equals first."""
    return sorted(rewards, key=lambda k: (-rewards[k], k))


def every_two(rewards: dict[int, float]) -> list[tuple[int, int]]:
    """Each pair once, (the one with the higher reward, the other)."""
    order = best_first(rewards)
    return [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
