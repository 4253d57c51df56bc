"""Simple preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import (
    FLIP_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    checked,
)


@dataclass(frozen=True)
class SimPO(PairwiseObjective):
    """-log sigmoid(beta (a_chosen - a_rejected) - gamma), a a log-prob averaged over tokens.

    No reference. The defaults are the authors' for Llama-3-Base; their others, as (beta,
    gamma / beta): Mistral-Base (2, 0.8), Mistral-Instruct (2.5, 0.1), Llama-3-Instruct (2.5, 0.55)
    and its v0.2 (10, 0.3), Gemma-2 (10, 0.5). TRL's CPOConfig has (0.1, 5), which nobody published.

    beta             scale of the averages, larger than for summed log-probs; > 0
    gamma            the margin aimed at, after beta: the authors' scripts give gamma / beta
    label_smoothing  e, the assumed rate of flipped labels: (1 - e) and e of the two directions
    chosen_lengths, rejected_lengths  tokens of each response
    Source: Meng et al., arXiv:2405.14734, eq. 6.
    """

    name: ClassVar[str] = "simpo"
    needs_reference = False
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": 0.0, "rejected_lengths": 0.0}
    beta: float = checked(2.0, POSITIVE)
    gamma: float = checked(1.0, NOT_NEGATIVE)
    label_smoothing: float = checked(0.0, FLIP_RATE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        chosen, rejected = self.beta / x.lengths("chosen"), self.beta / x.lengths("rejected")
        win = {"chosen": chosen, "rejected": -rejected}
        terms = [Term("logistic", win, -self.gamma, 1 - self.label_smoothing)]
        if self.label_smoothing > 0:
            lose = {"chosen": -chosen, "rejected": rejected}
            terms.append(Term("logistic", lose, self.gamma, self.label_smoothing))
        return terms

    def reward(self, x: Examples, operand: str) -> Tensor:
        """Averaged over tokens."""
        return self.reward_scale * x.log_ratio(operand) / x.lengths(operand)
