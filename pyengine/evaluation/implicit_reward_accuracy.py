"""Whether a policy, read as a reward model, orders responses as the feedback does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import RequestError
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.standard_errors import mean_figure, mean_or_none
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Comparison, Group
from pyengine.rules import Rule, check_fields, checked

_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")

Table = Sequence[Sequence[float | None]]


def implicit_reward_accuracy(
    comparisons: Sequence[Comparison], policy_logps: Table, reference_logps: Table
) -> Figure:
    """Share of comparisons whose winner has the larger implicit reward log pi - log pi_ref.

    policy_logps, reference_logps  [group][response] sums of token log-probs, as `engine.score`
                                   gives them; comparisons with one missing are left out
    Equal rewards count half; beta changes no order. The error is over groups.
    Raises RewardError without a comparison that has all four.
    Source: Tang et al., arXiv:2405.08448; Rafailov et al., arXiv:2305.18290, equation 5.
    """
    right: dict[int, list[float]] = {}
    for c in comparisons:
        sides = [
            (policy_logps[c.group][k], reference_logps[c.group][k]) for k in (c.winner, c.loser)
        ]
        rewards = [p - q for p, q in sides if p is not None and q is not None]
        if len(rewards) == 2:
            won = 0.5 if rewards[0] == rewards[1] else float(rewards[0] > rewards[1])
            right.setdefault(c.group, []).append(won)
    of_groups = [mean_or_none(right[g]) for g in sorted(right)]
    return mean_figure("implicit_reward_accuracy", of_groups)


@dataclass(frozen=True)
class ImplicitRewardAccuracy:
    """Share of pairs that log pi - log pi_ref orders as the rewards do: the policy as classifier.

    policy_column     column of the feedback with the policy's summed log-prob of each response
    reference_column  and the reference's
    Every two responses of a group with different rewards are a pair. Gives
    "implicit_reward_accuracy" with its error over prompts. Raises RequestError for a column that
    is not there, RewardError without a pair.
    Source: Tang et al., arXiv:2405.08448.
    """

    name: ClassVar[str] = "implicit_reward_accuracy"
    reads_reference: ClassVar[bool] = True
    policy_column: str = checked("policy_logps", _NAME)
    reference_column: str = checked("reference_logps", _NAME)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """See the class."""
        feedback.check_shape([len(group.responses) for group in groups])
        for column in (self.policy_column, self.reference_column):
            if column not in feedback.columns:
                raise RequestError(
                    f"[implicit_reward_accuracy] feedback.columns must have {column!r} but has "
                    f"{sorted(feedback.columns)}"
                )
        pairs = [
            Comparison(g, i, j)
            for g, row in enumerate(feedback.rewards)
            for i, won in enumerate(row)
            for j, lost in enumerate(row)
            if won is not None and lost is not None and won > lost
        ]
        policy, reference = self.policy_column, self.reference_column
        figure = implicit_reward_accuracy(
            pairs, feedback.columns[policy], feedback.columns[reference]
        )
        return {"implicit_reward_accuracy": figure}
