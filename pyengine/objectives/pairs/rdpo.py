"""Provably robust DPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import FLIP_RATE, POSITIVE, checked


@dataclass(frozen=True)
class RDPO(PairwiseObjective):
    """(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2 e), z = beta h.

    h is DPO's. Averaged over labels that are flipped at the rate e this is DPO's loss on the clean
    ones. It is not bounded below: for large z it falls like -e z / (1 - 2 e). At policy ==
    reference it is log 2.

    beta       how closely to stay to the reference; > 0
    flip_rate  e, the rate of flipped labels, in [0, 0.5); 0 is DPO. (TRL: label_smoothing of
               loss_type "robust".)
    Source: Ray Chowdhury et al., arXiv:2403.00409.
    """

    name: ClassVar[str] = "rdpo"
    beta: float = checked(0.1, POSITIVE)
    flip_rate: float = checked(0.1, FLIP_RATE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        e, beta = self.flip_rate, self.beta
        clean = (1 - e) / (1 - 2 * e)
        return [
            Term("logistic", {"chosen": beta, "rejected": -beta}, scale=clean),
            Term("logistic", {"chosen": -beta, "rejected": beta}, scale=1 - clean),
        ]
