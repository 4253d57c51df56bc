"""DPO with other divergences than the reverse KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import MAX_EXPONENT, Term, soft_logistic
from pyengine.rules import OPEN_FRACTION, POSITIVE, checked, one_of

# f'(e^rho), up to a constant, which the difference of two does not see.
_SLOPES: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "forward_kl": lambda rho, _: -torch.exp((-rho).clamp(max=MAX_EXPONENT)),
    "js": lambda rho, _: F.logsigmoid(rho),
    "alpha": lambda rho, a: -torch.expm1((-a * rho).clamp(max=MAX_EXPONENT)) / a,
}


@dataclass(frozen=True)
class FDPO(PairwiseObjective):
    """-log sigmoid(beta (f'(e^rho_chosen) - f'(e^rho_rejected))), rho log policy / reference.

    f is that of the divergence, f' meant up to a constant: reverse_kl rho; forward_kl -e^-rho; js
    log sigmoid(rho); alpha (1 - e^(-alpha rho)) / alpha. At policy == reference the loss is log 2.
    Exponents end at 80, beyond which the gradient is 0: only there float32 would overflow. The
    metrics rewards/* are beta rho whatever the divergence, as in TRL.

    beta        weight of the divergence; > 0
    divergence  "reverse_kl" (DPO), "forward_kl", "js" or "alpha"
    alpha       of "alpha", in (0, 1): towards 0 it is the reverse KL, towards 1 the forward KL. The
                paper's; TRL's f_alpha_divergence_coef is 1 - alpha.
    Source: Wang et al., arXiv:2309.16240.
    """

    name: ClassVar[str] = "f_dpo"
    beta: float = checked(0.1, POSITIVE)
    divergence: str = checked("reverse_kl", one_of("reverse_kl", *_SLOPES))
    alpha: float = checked(0.5, OPEN_FRACTION)

    def terms(self, x: Examples) -> Sequence[Term] | None:
        """Those of the reverse KL alone: the other slopes are not linear in rho."""
        return soft_logistic(self.beta, 1.0) if self.divergence == "reverse_kl" else None

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        if self.divergence == "reverse_kl":
            return super().losses(x)
        slope = _SLOPES[self.divergence]
        chosen = slope(x.log_ratio("chosen"), self.alpha)
        rejected = slope(x.log_ratio("rejected"), self.alpha)
        return -F.logsigmoid(self.beta * (chosen - rejected))
