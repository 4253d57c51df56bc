"""DPO of single responses with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class PointwiseDPO(PointwiseObjective):
    """-z log sigmoid(beta rho) - (1 - z) log sigmoid(-beta rho), z the label.

    rho is a response's log-ratio of policy and reference: a binary classifier whose logit is the
    implicit reward, the partition term beta log Z taken as 0. At policy == reference the loss is
    log 2 and the gradient beta (1/2 - z).

    beta    scale of the log-ratio; > 0
    labels  z in [0, 1]: 1 good, 0 bad
    The paper's squared form for graded labels could not be checked and is not offered.
    Source: Cai et al., arXiv:2312.02554.
    """

    name: ClassVar[str] = "pointwise_dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"labels": None}
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [
            Term("logistic", {"response": self.beta}, scale=x["labels"]),
            Term("logistic", {"response": -self.beta}, scale=1 - x["labels"]),
        ]
