"""General preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class GPO(PointwiseObjective):
    """(rho - s / beta)^2, s the mean preference score of the response against others.

    rho is the log-ratio of policy and reference, the iterate that sampled the responses; s the mean
    over that iterate's samples y_k of a general preference model's score s(y, y_k), which is
    antisymmetric and so has no 1/2 to take off, as SPPO's win rates have. At policy == reference
    the loss is (s / beta)^2.

    beta    how closely to stay to the reference; > 0
    scores  s; in an update the column "scores", or else the rewards
    Source: Zhang et al., arXiv:2410.02197.
    """

    name: ClassVar[str] = "gpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"scores": None}
    beta: float = checked(1e-3, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("square", {"response": 1.0}, -x["scores"] / self.beta)]
