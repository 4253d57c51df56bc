"""How a figure changed from the beginning of a run to its end, against the noise of its rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyengine.evaluation.standard_errors import mean_and_error
from pyengine.reports.page.record import Points

WINDOW = 5  # the beginning and the end are a fifth of the rounds each
NOISE = 2.0  # standard errors that a change must exceed to count as one


@dataclass(frozen=True)
class End:
    """The mean over the rounds of one end.

    error        its standard error; None where a single round says nothing of it
    first, last  of its rounds
    """

    mean: float
    error: float | None
    first: int
    last: int

    @property
    def rounds(self) -> str:
        """Of training samples, in words."""
        if self.first == self.last:
            return f"in round {self.first}"
        return f"in rounds {self.first} to {self.last}"

    @property
    def after_rounds(self) -> str:
        """Of evaluations, in words: they come after a round, that of round 0 before training."""
        if self.first == self.last:
            return f"after round {self.first}" if self.first else "before training"
        if self.first == 0:
            return f"up to round {self.last}"
        return f"after rounds {self.first} to {self.last}"


@dataclass(frozen=True)
class Change:
    """From one end to the other."""

    before: End
    after: End

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after.mean - self.before.mean

    @property
    def noise(self) -> float:
        """What the difference must exceed; 0 where no round says how noisy it is."""
        return NOISE * math.hypot(self.before.error or 0.0, self.after.error or 0.0)

    @property
    def rises(self) -> bool:
        """By more than the noise."""
        return self.difference > self.noise

    @property
    def falls(self) -> bool:
        """By more than the noise."""
        return self.difference < -self.noise


def end_of(points: Points, errors: Mapping[float, float] | None = None) -> End | None:
    """The last fifth of the points, at least one; None where there is none.

    errors  round -> standard error of its value, for an end of a single round
    """
    return _end(points[-_size(points) :], errors or {}) if points else None


def change(points: Points, errors: Mapping[float, float] | None = None) -> Change | None:
    """From the first fifth of the points to the last; None for fewer than two points."""
    if len(points) < 2:
        return None
    size, known = _size(points), errors or {}
    return Change(_end(points[:size], known), _end(points[-size:], known))


def _size(points: Sequence[object]) -> int:
    return max(1, len(points) // WINDOW)


def _end(points: Points, errors: Mapping[float, float]) -> End:
    mean, error = mean_and_error([value for _, value in points])
    if error is None:
        error = errors.get(points[0][0])
    return End(mean, error, int(points[0][0]), int(points[-1][0]))
