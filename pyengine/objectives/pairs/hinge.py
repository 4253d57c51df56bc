"""Hinge loss on log-ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class Hinge(PairwiseObjective):
    """max(0, m - beta h).

    h = (policy - reference)_chosen - (policy - reference)_rejected, of summed log-probs. RSO's
    loss, and what TRL calls hinge; SLiC-HF's own has no reference, see SLiC. At policy == reference
    the loss is 1 and the gradient on each response beta; from beta h >= 1 on both are 0.

    beta    the margin of log-ratios aimed at is m / beta; > 0
    margin  m; 1 where it is not given
    Source: Liu et al., arXiv:2309.06657; after Zhao et al., arXiv:2305.10425.
    """

    name: ClassVar[str] = "hinge"
    inputs: ClassVar[Mapping[str, float | None]] = {"margin": 1.0}
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("hinge", {"chosen": -self.beta, "rejected": self.beta}, x["margin"])]
