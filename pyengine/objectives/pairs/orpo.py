"""Odds-ratio preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.labelled.nll import NLL_AVERAGE, nll_slope
from pyengine.rules import POSITIVE, checked

_NEARLY_CERTAIN = -1e-7  # log-prob a token from where on the odds would grow without end


@dataclass(frozen=True)
class ORPO(PairwiseObjective):
    """NLL_chosen - lam log sigmoid(o_chosen - o_rejected), o = a - log(1 - e^a): log-odds.

    a is a response's log-prob averaged over its tokens, at most -1e-7; no reference. Where both
    responses have the same odds the second term is lam log 2.

    lam          weight of the odds ratio (TRL: beta); > 0
    nll_average  "example": per token of each chosen response, as the authors' code averages at one
                 example a device; "batch": per chosen token of the batch, as TRL (whose NLL counts
                 the prompt's tokens too; ours never does); "sum"
    chosen_lengths, rejected_lengths  tokens of each response
    Source: Hong et al., arXiv:2403.07691, eq. 6 and 7.
    """

    name: ClassVar[str] = "orpo"
    needs_reference = False
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": 0.0, "rejected_lengths": 0.0}
    lam: float = checked(0.1, POSITIVE)
    nll_average: str = checked("example", NLL_AVERAGE)

    @property
    def batch_global(self) -> bool:  # type: ignore[override]
        """Where the NLL is averaged over the batch's tokens."""
        return self.nll_average == "batch"

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        nll = nll_slope(x, "chosen", self.nll_average) * x.policy["chosen"]
        return nll - self.lam * F.logsigmoid(_log_odds(x, "chosen") - _log_odds(x, "rejected"))

    def reward(self, x: Examples, operand: str) -> Tensor:
        """TRL's: lam times the average."""
        return self.lam * x.policy[operand] / x.lengths(operand)


def _log_odds(x: Examples, operand: str) -> Tensor:
    """(B,) log p - log(1 - p), p the geometric mean of the tokens' probabilities."""
    average = (x.policy[operand] / x.lengths(operand)).clamp(max=_NEARLY_CERTAIN)
    return average - torch.log(-torch.expm1(average))
