"""DPO on soft labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class SoftDPO(PairwiseObjective):
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), z = beta h: DPO where p must be given.

    h is DPO's. Of online self-preferring models (OSP): p is how sure the model itself is that the
    chosen response wins, averaged over both orders of showing the two, and the pairs come from a
    ranking of its own samples. How the paper turns rankings into p could not be checked. At policy
    == reference the loss is log 2 and the gradient on the chosen response beta (1/2 - p).

    beta    how closely to stay to the reference; > 0
    target  p = P(chosen wins); in the engine the comparison's probability
    Source: Zhai et al., arXiv:2405.14103.
    """

    name: ClassVar[str] = "soft_dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"target": None}
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return soft_logistic(self.beta, x["target"])
