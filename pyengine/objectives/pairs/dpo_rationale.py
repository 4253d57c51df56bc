"""DPO with the likelihood of a rationale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import NOT_NEGATIVE, POSITIVE, SWITCH, checked


@dataclass(frozen=True)
class DPORationale(PairwiseObjective):
    """-log sigmoid(beta h) - gamma log pi(rationale | prompt, chosen > rejected).

    h is DPO's. The rationale says why the chosen response is better; its prompt shows both, and its
    log-prob is taken as it is, not relative to the reference. The paper's gamma, and whether it
    sums or averages over the rationale's tokens, could not be checked: both are offered.

    beta    how closely to stay to the reference; > 0
    gamma   weight of the rationale; >= 0, where 0 is DPO
    length_normalize  the rationale's mean over tokens instead of its sum
    target  P(chosen wins); 1 where it is not given
    rationale_logps   summed log-probs of the rationale under the policy, differentiable; in the
                      engine the comparison's auxiliary response
    rationale_lengths its tokens, for the mean
    Source: Just et al., arXiv:2407.14477.
    """

    name: ClassVar[str] = "dpo_rationale"
    operands: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "rationale")
    plain: ClassVar[tuple[str, ...]] = ("rationale",)
    inputs: ClassVar[Mapping[str, float | None]] = {"rationale_lengths": 0.0, "target": 1.0}
    beta: float = checked(0.1, POSITIVE)
    gamma: float = checked(1.0, NOT_NEGATIVE)
    length_normalize: bool = checked(False, SWITCH)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        share = 1 / x.lengths("rationale") if self.length_normalize else 1.0
        rationale = Term("linear", {"rationale": share}, scale=-self.gamma)
        return [*soft_logistic(self.beta, x["target"]), rationale]
