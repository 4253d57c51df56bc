"""Direct reward optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term, evaluate
from pyengine.rules import POSITIVE, SWITCH, checked


@dataclass(frozen=True)
class DRO(PointwiseObjective):
    """(r - V - tau rho)^2 / 2: rewards of single responses, no pairs.

    rho is a response's log-ratio of policy and reference, r its reward, V the value of its prompt.
    With the best V the loss is 0 where policy = reference e^((r - V) / tau). At policy == reference
    it is (r - V)^2 / 2.

    tau      how closely to stay to the reference; > 0
    rescale  divide by tau, as the paper's algorithm does the policy's gradient, which is then
             -(r - V) + tau rho
    rewards  r
    values   V; the loss is differentiable in it in the plain function, which is the value network's
             loss with rescale=False. An update takes it as a number
    Source: Richemond et al., arXiv:2405.19107, algorithm 1.
    """

    name: ClassVar[str] = "dro"
    inputs: ClassVar[Mapping[str, float | None]] = {"rewards": None, "values": None}
    tau: float = checked(1.0, POSITIVE)
    rescale: bool = checked(False, SWITCH)

    @property
    def reward_scale(self) -> float:
        """tau: what the reward is compared with."""
        return self.tau

    def terms(self, x: Examples) -> Sequence[Term] | None:
        """None where V wants a gradient, which the kernel does not give."""
        values = x["values"]
        if isinstance(values, Tensor) and values.requires_grad:
            return None
        return [self._term(x)]

    def losses(self, x: Examples) -> Tensor:
        """See the class."""
        return evaluate([self._term(x)], {"response": x.log_ratio("response")})

    def _term(self, x: Examples) -> Term:
        scale = 0.5 / self.tau if self.rescale else 0.5
        return Term("square", {"response": -self.tau}, x["rewards"] - x["values"], scale)
