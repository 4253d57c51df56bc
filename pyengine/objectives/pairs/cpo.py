"""Contrastive preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.objectives.labelled.nll import NLL_AVERAGE, nll_slope
from pyengine.rules import (
    FLIP_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    checked,
)


@dataclass(frozen=True)
class CPO(PairwiseObjective):
    """-log sigmoid(beta (lp_chosen - lp_rejected)) + alpha NLL_chosen; no reference.

    lp are summed log-probs. Peers differ in the NLL: here it is per token of each chosen response
    ("example"); TRL and the authors' code average over all chosen tokens of a batch ("batch"), the
    paper writes the sum ("sum"). Prompt tokens take no part.

    beta             scale of the margin; > 0
    alpha            weight of the NLL; 0 for none
    nll_average      "example", "batch" (the mean length is over the batch's comparisons) or "sum"
    label_smoothing  e, the assumed rate of flipped labels
    chosen_lengths   tokens of each chosen response, for the averages
    Source: Xu et al., arXiv:2401.08417, eq. 3.
    """

    name: ClassVar[str] = "cpo"
    needs_reference = False
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": 0.0}
    beta: float = checked(0.1, POSITIVE)
    alpha: float = checked(1.0, NOT_NEGATIVE)
    nll_average: str = checked("example", NLL_AVERAGE)
    label_smoothing: float = checked(0.0, FLIP_RATE)

    @property
    def batch_global(self) -> bool:  # type: ignore[override]
        """Where the NLL is averaged over the batch's tokens."""
        return self.nll_average == "batch" and self.alpha > 0

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        terms = soft_logistic(self.beta, 1 - self.label_smoothing)
        if self.alpha > 0:
            slope = self.alpha * nll_slope(x, "chosen", self.nll_average)
            terms.append(Term("linear", {"chosen": slope}))
        return terms
