"""Direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import FLIP_RATE, POSITIVE, checked


@dataclass(frozen=True)
class DPO(PairwiseObjective):
    """-p log sigmoid(z) - (1 - p) log sigmoid(-z), z = beta h - m.

    h = (policy - reference)_chosen - (policy - reference)_rejected, of summed log-probs; p is the
    comparison's probability, smoothed to p (1 - e) + (1 - p) e. At policy == reference the loss is
    log 2 and the gradient on each response beta (p - 1/2).

    beta             how closely to stay to the reference; > 0
    label_smoothing  e, the assumed rate of flipped labels, in [0, 0.5); e > 0 is known as cDPO
    target           p; 1 where it is not given
    margin           m, what the implicit reward of the chosen response should lead by; 0 where it
                     is not given. ODPO's is alpha log of the difference of their scores
    Source: Rafailov et al., arXiv:2305.18290, eq. 7; smoothing: Mitchell, "A note on DPO with noisy
    preferences", 2023; margin: Amini et al., arXiv:2402.10571, eq. 8 (DPO with an offset).
    """

    name: ClassVar[str] = "dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {"target": 1.0, "margin": 0.0}
    beta: float = checked(0.1, POSITIVE)
    label_smoothing: float = checked(0.0, FLIP_RATE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        e, p = self.label_smoothing, x["target"]
        return soft_logistic(self.beta, p * (1 - e) + (1 - p) * e, 0.0 - x["margin"])
