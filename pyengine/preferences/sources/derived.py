"""What follows from a source's rewards, and further columns beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyengine.errors import ConfigError
from pyengine.preferences.bradley_terry_model import preference
from pyengine.preferences.feedback import MAX_ERRORS, Feedback, SampleStatus
from pyengine.preferences.groups import Group
from pyengine.preferences.sources.ahead import GiveUp, ask_ahead, overlaps
from pyengine.preferences.sources.source import Gives, Source, gives
from pyengine.preferences.sources.token_function import TokenFunction


class Derived:
    """A source's feedback with labels, a preference matrix or columns added.

    label_threshold      a response is desirable where its reward is greater; None: no labels
    bradley_terry_scale  P(i beats j) = sigmoid((reward_i - reward_j) / scale); None: no matrix
    columns              name -> a source whose rewards become that column
    token_columns        name -> a function that gives numbers of every token

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
        token_columns: Mapping[str, TokenFunction] | None = None,
    ) -> None:
        if label_threshold is not None and not math.isfinite(label_threshold):
            raise ConfigError(f"[Derived] label_threshold must be finite but is {label_threshold}")
        scale = bradley_terry_scale
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigError(
                f"[Derived] bradley_terry_scale must be > 0 and finite but is {scale}"
            )
        self.source, self.columns = source, dict(columns or {})
        self.token_columns = dict(token_columns or {})
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
            token_columns=tuple(dict.fromkeys((*own.token_columns, *self.token_columns))),
        )

    @property
    def asks(self) -> tuple[Any, ...]:
        """The sources and functions within it."""
        return (self.source, *self.columns.values(), *self.token_columns.values())

    @property
    def overlaps(self) -> bool:
        """See AsksAhead."""
        return overlaps(self.source, *self.columns.values())

    def ahead(self, groups: Sequence[Group]) -> GiveUp:
        """See AsksAhead."""
        return ask_ahead([self.source, *self.columns.values()], groups)

    def __call__(self, groups: Sequence[Group]) -> Feedback:
        """The source's feedback, with what is added."""
        feedback = self.source(groups)
        for name, source in self.columns.items():
            column = source(groups)
            feedback.columns[name] = [list(row) for row in column.rewards]
            feedback.components |= {name: [list(row) for row in column.rewards]}
            _take_failures(feedback, column.status, column.errors)
        for name, function in self.token_columns.items():
            feedback.token_columns[name], status, errors = function(groups)
            _take_failures(feedback, status, errors)
        if self.label_threshold is not None:
            threshold = self.label_threshold
            feedback.labels = [
                [r is not None and r > threshold for r in row] for row in feedback.rewards
            ]
        if self.bradley_terry_scale is not None:
            feedback.preference_matrix = [
                [[preference(a, b, self.bradley_terry_scale) for b in row] for a in row]
                for row in feedback.rewards
            ]
        return feedback


def _take_failures(
    feedback: Feedback, statuses: Sequence[Sequence[SampleStatus]], errors: Sequence[str]
) -> None:
    """A response without one of its numbers has no reward, either."""
    feedback.errors = [*feedback.errors, *errors][:MAX_ERRORS]
    for g, row in enumerate(statuses):
        for k, status in enumerate(row):
            if status != "value" and feedback.status[g][k] == "value":
                feedback.status[g][k], feedback.rewards[g][k] = status, None
