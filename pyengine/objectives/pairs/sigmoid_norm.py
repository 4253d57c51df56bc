"""DPO of log-ratios a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class SigmoidNorm(PairwiseObjective):
    """-log sigmoid(beta (rho_chosen / n_chosen - rho_rejected / n_rejected)).

    DPO with each log-ratio averaged over its response's n tokens; TRL's sigmoid_norm. At policy ==
    reference the loss is log 2.

    beta                              scale of the averages, larger than DPO's; > 0
    chosen_lengths, rejected_lengths  n
    The default is TRL's; no published setting is known to us.
    Source: Rafailov et al., arXiv:2305.18290, averaged as TRL 1.16 does.
    """

    name: ClassVar[str] = "sigmoid_norm"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": 0.0, "rejected_lengths": 0.0}
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        chosen, rejected = self.beta / x.lengths("chosen"), self.beta / x.lengths("rejected")
        return [Term("logistic", {"chosen": chosen, "rejected": -rejected})]

    def reward(self, x: Examples, operand: str) -> Tensor:
        """Averaged over tokens."""
        return self.reward_scale * x.log_ratio(operand) / x.lengths(operand)
