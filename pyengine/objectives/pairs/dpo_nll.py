"""DPO with the chosen response's negative log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term, soft_logistic
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked


@dataclass(frozen=True)
class DPONLL(PairwiseObjective):
    """-log sigmoid(beta h) - alpha log pi(chosen) / |chosen|: keeps the chosen response likely.

    h is DPO's; |chosen| is its number of tokens. The second part is a mean over each response's own
    tokens, then over comparisons; TRL's loss_type ["sigmoid", "sft"] has the mean over all tokens
    of the batch, which is the same only for responses of one length.

    beta    how closely to stay to the reference; > 0
    alpha   weight of the log-likelihood; >= 0, where 0 is DPO
    target  P(chosen wins); 1 where it is not given
    chosen_lengths  |chosen|
    Source: Pang et al., arXiv:2404.19733.
    """

    name: ClassVar[str] = "dpo_nll"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": None, "target": 1.0}
    beta: float = checked(0.1, POSITIVE)
    alpha: float = checked(1.0, NOT_NEGATIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """The kernel's log-ratio is to the reference, so the reference comes back as a shift."""
        share = 1 / x.lengths("chosen")
        mean = Term("linear", {"chosen": share}, share * x.ref("chosen"), -self.alpha)
        return [*soft_logistic(self.beta, x["target"]), mean]
