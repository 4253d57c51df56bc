"""Whether probabilities mean what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pyengine.errors import RequestError, RewardError
from pyengine.evaluation.correctness import correctness
from pyengine.evaluation.evaluation import Figure
from pyengine.evaluation.standard_errors import bootstrap_error, mean_figure, mean_or_none
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.rules import COUNT, FINITE, WHOLE, Rule, check_fields, checked

_NAME = Rule("a name", lambda value: isinstance(value, str) and value != "")
Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class Bin:
    """Predictions of about one size: how many, what they say on average, and how often it is so."""

    count: int
    mean_probability: float
    frequency: float


def reliability(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    bins: int = 10,
    binning: Binning = "width",
) -> list[Bin]:
    """The bins of a reliability diagram, from small probabilities to large; empty ones left out.

    binning  "width": probabilities in ((i - 1) / bins, i / bins], 0 in the first; "mass": as many
             predictions a bin as can be, in order of probability, equal ones as they are given
    Raises RequestError for probabilities or outcomes outside [0, 1], lists that do not go together.
    """
    _check(probabilities, outcomes)
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    parts: list[list[int]] = [[] for _ in range(bins)]
    for rank, i in enumerate(order):
        if binning == "width":
            parts[max(math.ceil(probabilities[i] * bins) - 1, 0)].append(i)
        else:
            parts[rank * bins // len(order)].append(i)
    return [
        Bin(
            len(part),
            math.fsum(probabilities[i] for i in part) / len(part),
            math.fsum(outcomes[i] for i in part) / len(part),
        )
        for part in parts
        if part
    ]


def expected_calibration_error(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    bins: int = 10,
    binning: Binning = "width",
) -> float:
    """sum over bins of (share of predictions) |mean probability - frequency|.

    Raises RequestError, see `reliability`, and without predictions.
    Source: Guo et al., arXiv:1706.04599, section 2, equation 3 ("width"); Nixon et al.,
    arXiv:1904.01685, section 3 ("mass").
    """
    table = reliability(probabilities, outcomes, bins, binning)
    if not table:
        raise RequestError("[calibration] probabilities must hold at least one but are empty")
    gaps = [b.count * abs(b.mean_probability - b.frequency) for b in table]
    return math.fsum(gaps) / len(probabilities)


def brier(probabilities: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean of (probability - outcome)^2. Raises RequestError. Source: Brier, 1950."""
    _check(probabilities, outcomes)
    if not probabilities:
        raise RequestError("[calibration] probabilities must hold at least one but are empty")
    squares = [(p - y) ** 2 for p, y in zip(probabilities, outcomes, strict=True)]
    return math.fsum(squares) / len(squares)


@dataclass(frozen=True)
class Calibration:
    """How far stated probabilities of being right are from how often that is so: ECE and Brier.

    column     column of the feedback with P(the response is right), in [0, 1]
    bins       of both ECEs
    threshold  where the feedback has no labels, a response is right when its reward is greater
    seed       of the bootstrap
    Gives "ece" (bins of equal width), "ece_equal_mass" and "brier". Errors are over prompts: by
    bootstrap for the ECEs, whose bins mix prompts. Raises RequestError for a column that is not
    there or a number that is no probability, RewardError without a judged prediction.
    Source: Guo et al., arXiv:1706.04599, section 2; Nixon et al., arXiv:1904.01685, section 3.
    """

    name: ClassVar[str] = "calibration"
    column: str = checked("probability", _NAME)
    bins: int = checked(10, COUNT)
    threshold: float = checked(0.5, FINITE)
    seed: int = checked(0, WHOLE)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, groups: Sequence[Group], feedback: Feedback) -> dict[str, Figure]:
        """See the class."""
        right = correctness(groups, feedback, self.threshold)
        if self.column not in feedback.columns:
            raise RequestError(
                f"[calibration] feedback.columns must have {self.column!r} but has "
                f"{sorted(feedback.columns)}"
            )
        pairs = [
            [
                (p, float(y))
                for p, y in zip(said, row, strict=True)
                if p is not None and y is not None
            ]
            for said, row in zip(feedback.columns[self.column], right, strict=True)
        ]
        pairs = [row for row in pairs if row]
        if not pairs:
            raise RewardError("[calibration] at least one prediction must be judged but 0 are")
        figures = {"brier": mean_figure("calibration", [mean_or_none(_squares(r)) for r in pairs])}
        binnings: tuple[tuple[str, Binning], ...] = (("ece", "width"), ("ece_equal_mass", "mass"))
        for name, binning in binnings:
            figures[name] = self._ece(name, binning, pairs)
        return figures

    def _ece(
        self, name: str, binning: Binning, pairs: Sequence[Sequence[tuple[float, float]]]
    ) -> Figure:
        def of(prompts: Sequence[int]) -> float:
            chosen = [pair for g in prompts for pair in pairs[g]]
            said, came = [p for p, _ in chosen], [y for _, y in chosen]
            return expected_calibration_error(said, came, self.bins, binning)

        key = f"calibration/{name}/{self.seed}"
        n = len(pairs)
        return Figure(of(range(n)), bootstrap_error(of, n, key), n)


def _squares(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [(p - y) ** 2 for p, y in pairs]


def _check(probabilities: Sequence[float], outcomes: Sequence[float]) -> None:
    if len(probabilities) != len(outcomes):
        raise RequestError(
            f"[calibration] outcomes must be as many as probabilities, {len(probabilities)}, but "
            f"are {len(outcomes)}"
        )
    for name, values in (("probabilities", probabilities), ("outcomes", outcomes)):
        for i, value in enumerate(values):
            if not 0 <= value <= 1:
                raise RequestError(f"[calibration] {name}[{i}] must be in [0, 1] but is {value}")
