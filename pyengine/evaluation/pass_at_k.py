"""pass@k: whether one of k samples is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import RequestError
from pyengine.evaluation.correctness import correctness
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.standard_errors import mean_figure
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.rules import FINITE, Rule, check_fields, checked

COUNTS = Rule(
    "a list of integers >= 1",
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(type(k) is int and k >= 1 for k in value)
    ),
)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one.

    Unbiased for k independent samples. Raises RequestError unless 0 <= c <= n and 1 <= k <= n.
    Source: Chen et al., arXiv:2107.03374, section 2.1, equation 1.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise RequestError(
            "[pass_at_k] samples must be at least k >= 1 and at least correct >= 0 but samples is "
            f"{samples}, k is {k}, correct is {correct}"
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@dataclass(frozen=True)
class PassAtK:
    """Chance that at least one of k samples is right, estimated without bias from all of them.

    ks         values of k; a prompt with fewer judged samples has no pass@k
    threshold  where the feedback has no labels, a response is right when its reward is greater
    Gives "pass@<k>" for each, with errors over prompts. Raises RewardError where no prompt has
    samples enough. Source: Chen et al., arXiv:2107.03374, section 2.1.
    """

    name: ClassVar[str] = "pass_at_k"
    ks: Sequence[int] = checked((1,), COUNTS)
    threshold: float = checked(0.5, FINITE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """One figure for each k."""
        judged = [
            [right for right in row if right is not None]
            for row in correctness(groups, feedback, self.threshold)
        ]
        return {
            f"pass@{k}": mean_figure(
                f"pass_at_k, k = {k}",
                [pass_at_k(len(row), sum(row), k) if len(row) >= k else None for row in judged],
            )
            for k in self.ks
        }
