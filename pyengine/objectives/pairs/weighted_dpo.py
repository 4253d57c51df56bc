"""DPO with a weight for each pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import POSITIVE, checked

_WEIGHTS = ("weight", "chosen_weight", "rejected_weight")


@dataclass(frozen=True)
class WeightedDPO(PairwiseObjective):
    """-w log sigmoid(beta h), w a constant of the pair: pairs count by how reliable they are.

    h is DPO's. No gradient flows through w, and the mean is over pairs, not over weights: weights
    of 1/2 halve the loss. (A comparison's own weight is the other kind: it counts in the mean.)
    WPO's w is computed by the objective `wpo`. UPO: w from the mutual information of label and
    dropout (BALD); its exact weighting could not be checked.

    beta    how closely to stay to the reference; > 0
    target  P(chosen wins); 1 where it is not given
    weight  w; times chosen_weight and rejected_weight, where those are given (in the engine: the
            responses' column "weight"). One of the three must be.
    Source: Wang et al., arXiv:2409.11212 (UPO).
    """

    name: ClassVar[str] = "weighted_dpo"
    inputs: ClassVar[Mapping[str, float | None]] = {
        "target": 1.0,
        "weight": 1.0,
        "chosen_weight": 1.0,
        "rejected_weight": 1.0,
    }
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        weights = [x[name] for name in _WEIGHTS]
        if all(isinstance(w, float) and w == 1 for w in weights):
            raise ValueError(
                "[weighted_dpo] weight, or chosen_weight and rejected_weight, must be given"
            )
        weight = math.prod(w.detach() if isinstance(w, Tensor) else w for w in weights)
        return soft_logistic(self.beta, x["target"], scale=weight)
