"""Weighted preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import SUM_SQUARES, LossInputs
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import POSITIVE, SWITCH, checked


@dataclass(frozen=True)
class WPO(PairwiseObjective):
    """-w log sigmoid(beta h), w = w_chosen w_rejected, each exp(mean_t(log p_t - log sum_v p_v^2)).

    h is DPO's. A response's weight says how likely the policy is to write it, beside how likely it
    is to write anything so sure: off-policy pairs count less. No gradient flows through w.

    beta    how closely to stay to the reference; > 0
    clamp   w at most 1, as in the published code; False: as in TRL
    target  P(chosen wins); 1 where it is not given
    chosen_weight, rejected_weight  w_chosen and w_rejected; an update computes them
    Source: Zhou et al., arXiv:2406.11827, eq. 4.
    """

    name: ClassVar[str] = "wpo"
    side_outputs = (SUM_SQUARES,)
    inputs: ClassVar[Mapping[str, float | None]] = {
        "target": 1.0,
        "chosen_weight": None,
        "rejected_weight": None,
    }
    beta: float = checked(0.1, POSITIVE)
    clamp: bool = checked(True, SWITCH)

    def computed(self, inputs: LossInputs) -> dict[str, Tensor]:
        """Each response's weight."""
        excess = inputs.policy_token_logps.detach() - inputs.side["sum_squares"].log()
        mean = inputs.sequence_logps(excess) / inputs.lengths.clamp(min=1)
        return {"weight": mean.exp()}

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        weight = (x.column("chosen_weight") * x.column("rejected_weight")).detach()
        if self.clamp:
            weight = weight.clamp(max=1.0)
        return soft_logistic(self.beta, x["target"], scale=weight)
