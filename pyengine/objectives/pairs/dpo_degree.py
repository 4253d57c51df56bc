"""DPO with the classification of how much of a response is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import FLIP_RATE, NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class DPODegree(PairwiseObjective):
    """-log sigmoid(beta h) + gamma (CE_chosen + CE_rejected), CE = -log pi(degree | what is left).

    h is DPO's. Of each response a copy lacks some of its key content, and the policy says how much:
    the log-prob of the answer is taken as it is, not relative to the reference. The paper has a
    classifier of its own on the hidden state; here the degree is a token of the vocabulary, and its
    head the classifier. The paper's gamma and number of degrees could not be checked.

    beta             how closely to stay to the reference; > 0
    gamma            weight of the classification; >= 0, where 0 is DPO
    label_smoothing  as DPO's
    target           P(chosen wins); 1 where it is not given
    chosen_degree_logps, rejected_degree_logps  -CE; differentiable. In the engine these are the
                     comparison's auxiliary responses, in this order
    Source: "Self-supervised preference optimization", arXiv:2409.17791.
    """

    name: ClassVar[str] = "dpo_degree"
    operands: ClassVar[tuple[str, ...]] = (
        "chosen", "rejected", "chosen_degree", "rejected_degree"
    )  # fmt: skip
    plain: ClassVar[tuple[str, ...]] = ("chosen_degree", "rejected_degree")
    inputs: ClassVar[Mapping[str, float | None]] = {"target": 1.0}
    beta: float = checked(0.1, POSITIVE)
    gamma: float = checked(0.1, NOT_NEGATIVE)
    label_smoothing: float = checked(0.0, FLIP_RATE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        e, p = self.label_smoothing, x["target"]
        told = {"chosen_degree": 1.0, "rejected_degree": 1.0}
        return [
            *soft_logistic(self.beta, p * (1 - e) + (1 - p) * e),
            Term("linear", told, scale=-self.gamma),
        ]
