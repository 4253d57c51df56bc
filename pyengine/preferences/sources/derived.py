"""What follows from a source's rewards, and further columns beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pyengine.errors import ConfigError
from pyengine.preferences.feedback import MAX_ERRORS, Feedback
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.source import Gives, Source, gives


class Derived:
    """A source's feedback with labels, a preference matrix or columns added.

    label_threshold      a response is desirable where its reward is greater; None: no labels
    bradley_terry_scale  P(i beats j) = sigmoid((reward_i - reward_j) / scale); None: no matrix
    columns              name -> a source whose rewards become that column

    A pair with a response that has no reward has no probability. A response that a column's source
    fails on, or abstains on, has failed or abstained.
    Source: Bradley & Terry, 1952.
    """

    def __init__(
        self,
        source: Source,
        *,
        label_threshold: float | None = None,
        bradley_terry_scale: float | None = None,
        columns: Mapping[str, Source] | None = None,
    ) -> None:
        if label_threshold is not None and not math.isfinite(label_threshold):
            raise ConfigError(f"[Derived] label_threshold must be finite but is {label_threshold}")
        scale = bradley_terry_scale
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigError(
                f"[Derived] bradley_terry_scale must be > 0 and finite but is {scale}"
            )
        self.source, self.columns = source, dict(columns or {})
        self.label_threshold, self.bradley_terry_scale = label_threshold, scale

    @property
    def gives(self) -> Gives:
        """What the source gives, and what is added."""
        own = gives(self.source)
        return replace(
            own,
            labels=own.labels or self.label_threshold is not None,
            matrix=own.matrix or self.bradley_terry_scale is not None,
            columns=tuple(dict.fromkeys((*own.columns, *self.columns))),
        )

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The source's feedback, with what is added."""
        feedback = self.source(groups)
        for name, source in self.columns.items():
            self._add_column(feedback, name, source(groups))
        if self.label_threshold is not None:
            threshold = self.label_threshold
            feedback.labels = [
                [r is not None and r > threshold for r in row] for row in feedback.rewards
            ]
        if self.bradley_terry_scale is not None:
            feedback.preference_matrix = [
                [[_bradley_terry(a, b, self.bradley_terry_scale) for b in row] for a in row]
                for row in feedback.rewards
            ]
        return feedback

    @staticmethod
    def _add_column(feedback: Feedback, name: str, column: Feedback) -> None:
        feedback.columns[name] = [list(row) for row in column.rewards]
        feedback.components |= {name: [list(row) for row in column.rewards]}
        feedback.errors = (feedback.errors + column.errors)[:MAX_ERRORS]
        for g, row in enumerate(column.status):
            for k, status in enumerate(row):
                if status != "value" and feedback.status[g][k] == "value":
                    feedback.status[g][k], feedback.rewards[g][k] = status, None


def _bradley_terry(a: float | None, b: float | None, scale: float) -> float | None:
    if a is None or b is None:
        return None
    gap = (a - b) / scale
    return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0
