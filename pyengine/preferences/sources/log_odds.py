"""How much a response is preferred to its group's others, in log odds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.binding import bound
from pyengine.preferences.feedback import Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.source import Gives, gives
from pyengine.rules import OPEN_HALF, POSITIVE, check_fields, checked


@dataclass(frozen=True)
class LogOdds:
    """A source's preference matrix turned into scores: tau * log(P / (1 - P)), the mean over a
    group's others, is a response's reward.

    Of a general preference model, whose P(i beats j) is sigmoid(s(i, j) / tau), that is the mean of
    its own scores s; they are 0 on average over a group, where win rates are 1/2.

    source  that gives a matrix: "judge_matrix", or "reward_model" with reading "gpm"
    tau     temperature of the probabilities; > 0
    eps     probabilities are clipped to [eps, 1 - eps]; in (0, 0.5)
    A response without a probability against any other has the status that the source gave it, or
    has failed; one that is alone abstains. The matrix, columns and counts stay.
    Raises ConfigError for a source that gives no matrix.
    Source: Zhang et al., arXiv:2410.02197, section 5.
    """

    name: ClassVar[str] = "log_odds"
    source: Any = bound("source")
    tau: float = checked(1.0, POSITIVE)
    eps: float = checked(1e-4, OPEN_HALF)

    def __post_init__(self) -> None:
        check_fields(self)
        if not gives(self.source).matrix:
            raise ConfigError(
                f"[{self.name}] source must give a preference matrix but "
                f"{getattr(self.source, 'name', type(self.source).__name__)} gives none"
            )

    @property
    def gives(self) -> Gives:
        """What the source gives."""
        return gives(self.source)

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.source)

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead([self.source], groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The source's feedback with these rewards."""
        feedback: Feedback = self.source(groups)
        if feedback.preference_matrix is None:
            raise RequestError(f"[{self.name}] source must give a preference matrix but gave none")
        rewards: list[list[float | None]] = []
        status: list[list[SampleStatus]] = []
        for g, matrix in enumerate(feedback.preference_matrix):
            row = [self._score(i, ps) for i, ps in enumerate(matrix)]
            rewards.append(row)
            status.append(
                [
                    "value" if score is not None else _without(feedback.status[g][i], len(row))
                    for i, score in enumerate(row)
                ]
            )
        components = feedback.components | {self.name: [list(row) for row in rewards]}
        return replace(feedback, rewards=rewards, status=status, components=components)

    def _score(self, i: int, row: Sequence[float | None]) -> float | None:
        known = [p for j, p in enumerate(row) if j != i and p is not None]
        if not known:
            return None
        clipped = [min(max(p, self.eps), 1 - self.eps) for p in known]
        return self.tau * math.fsum(math.log(p / (1 - p)) for p in clipped) / len(clipped)


def _without(state: SampleStatus, size: int) -> SampleStatus:
    """Of a response without a score."""
    if size == 1:
        return "abstain"
    return "error" if state == "value" else state
