"""The best of n: what a policy is worth when the best of several samples is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import RequestError
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.pass_at_k import COUNTS
from pyengine.evaluation.standard_errors import mean_figure
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.rules import check_fields, checked


def expected_best(rewards: Sequence[float], n: int) -> float:
    """The expected largest reward of n of these samples: sum_k r_(k) C(k - 1, n - 1) / C(N, n) over
    the N rewards in rising order.

    Unbiased for n independent samples. Raises RequestError unless 1 <= n <= N.
    Source: Nakano et al., arXiv:2112.09332.
    """
    if not 1 <= n <= len(rewards):
        raise RequestError(
            f"[best_of_n] n must be in [1, {len(rewards)}], the samples' number, but is {n}"
        )
    total = math.comb(len(rewards), n)
    return math.fsum(
        reward * math.comb(below, n - 1) / total for below, reward in enumerate(sorted(rewards))
    )


@dataclass(frozen=True)
class BestOfN:
    """Mean reward of the best of n samples, estimated without bias from all of a prompt's: the
    baseline of methods that train.

    ns  values of n; a prompt with fewer rewarded samples has no best of n
    Gives "best_of_<n>" for each, with errors over prompts; the sample is chosen by the reward that
    it is judged by. Raises RewardError where no prompt has samples enough.
    Source: Nakano et al., arXiv:2112.09332, section 3.2; a baseline of Dubois et al.,
    arXiv:2305.14387.
    """

    name: ClassVar[str] = "best_of_n"
    ns: Sequence[int] = checked((4,), COUNTS)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """One figure for each n."""
        feedback.check_shape([len(group.responses) for group in groups])
        rows = [[r for r in row if r is not None] for row in feedback.rewards]
        return {
            f"best_of_{n}": mean_figure(
                f"best_of_n, n = {n}",
                [expected_best(row, n) if len(row) >= n else None for row in rows],
            )
            for n in self.ns
        }
