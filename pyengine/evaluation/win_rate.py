"""Win rate of a policy's responses against another model's, from a matrix or from rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import RequestError
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.length_control import length_controlled_win_rate
from pyengine.evaluation.standard_errors import mean_figure, mean_or_none
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.rules import POSITIVE, SWITCH, Rule, check_fields, checked

_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")


@dataclass(frozen=True)
class WinRate:
    """Share of duels that the policy's responses win against another model's, a tie being half.

    opponent        `Response.origin` of the other model's responses; those of the policy have
                    "policy" or None
    length_control  also the win rate at equal length
    ridge           see `length_controlled_win_rate`
    Every response of the policy meets every one of the opponent, with the probability of the
    feedback's preference matrix where it has one, else by who has the larger reward. Gives
    "win_rate" and "win_rate_length_controlled" with errors over prompts, "length_difference" in
    tokens, and "duels_failed": those without a verdict, which count for neither side.
    Raises RequestError where no group holds responses of both, RewardError without a verdict.
    Source: Dubois et al., arXiv:2404.04475, section 3.
    """

    name: ClassVar[str] = "win_rate"
    opponent: str = checked("reference", _NAME)
    length_control: bool = checked(True, SWITCH)
    ridge: float = checked(1e-2, POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """See the class."""
        feedback.check_shape([len(group.responses) for group in groups])
        duels = [self._duels(group) for group in groups]
        total = sum(map(len, duels))
        if total == 0:
            raise RequestError(
                "[win_rate] at least one group must hold responses of the policy and of "
                f"{self.opponent!r} (Response.origin) but 0 of {len(groups)} do"
            )
        chances: list[list[float]] = []
        differences: list[list[float]] = []
        for g, pairs in enumerate(duels):
            judged = [
                (p, i, j) for i, j in pairs if (p := preferred(feedback, g, i, j)) is not None
            ]
            lengths = [len(response.token_ids) for response in groups[g].responses]
            chances.append([p for p, _, _ in judged])
            differences.append([float(lengths[i] - lengths[j]) for _, i, j in judged])
        figures = {
            "win_rate": mean_figure("win_rate", [mean_or_none(row) for row in chances]),
            "length_difference": mean_figure(
                "win_rate", [mean_or_none(row) for row in differences]
            ),
            "duels_failed": Figure(float(total - sum(map(len, chances))), None, total),
        }
        if self.length_control:
            figures["win_rate_length_controlled"] = length_controlled_win_rate(
                chances, differences, self.ridge
            )
        return figures

    def _duels(self, group: Group) -> list[tuple[int, int]]:
        origins = [response.origin for response in group.responses]
        ours = [i for i, origin in enumerate(origins) if origin in (None, "policy")]
        theirs = [j for j, origin in enumerate(origins) if origin == self.opponent]
        return [(i, j) for i in ours for j in theirs]


def preferred(feedback: Feedback, g: int, i: int, j: int) -> float | None:
    """P(response i of group g is preferred to j): of the matrix, else by rewards, 1/2 for equal.

    None where there is no verdict.
    """
    if feedback.preference_matrix is not None:
        return feedback.preference_matrix[g][i][j]
    ours, theirs = feedback.rewards[g][i], feedback.rewards[g][j]
    if ours is None or theirs is None:
        return None
    return 0.5 if ours == theirs else float(ours > theirs)
