"""GRPO without the tokens whose step is predicted to move the policy too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.objective import SUM_SQUARES, LossInputs, SideOutput
from pyengine.objectives.tokens.grpo import GRPO
from pyengine.objectives.tokens.token_level import Credit
from pyengine.rules import FINITE, POSITIVE, checked


def predicted(
    probability: Tensor, sum_squares: Tensor, advantages: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """(gain, shift), (N,) each, of the step  step * A (e_y - p)  on a token's own logits.

    With g = e_y - p, the slope of log p_y, and F = diag(p) - p p^T, which is both the Fisher
    matrix and minus the Hessian: gain = step A^2 |g|^2 - step^2 A^3 g'Fg / 2, the change of A log
    p_y to second order, and shift = step^2 A^2 g'Fg / 2, the KL between before and after.
    |g|^2 = 1 - 2 p_y + s, g'Fg = p_y (1 - 2 p_y) + sum p^3 - (p_y - s)^2, s = sum p^2. Of sum p^3
    its bound s^1.5 is taken, exact where one word has all the mass.

    probability  (N,) p_y of the tokens
    sum_squares  (N,) s of their distributions
    """
    slope = (1 - 2 * probability + sum_squares).clamp(min=0)
    cubes = sum_squares**1.5
    curvature = probability * (1 - 2 * probability) + cubes - (probability - sum_squares) ** 2
    shift = step**2 * advantages**2 * curvature.clamp(min=0) / 2
    return step * advantages**2 * slope - advantages * shift, shift


@dataclass(frozen=True)
class CAPO(GRPO):
    """GRPO whose tokens have advantage 0 where a step on their own logits would be unstable.

    The step and its effects are those of `predicted`: a token is left out where its predicted shift
    is above max_shift, or its predicted gain below min_gain. The paper predicts the shift of the
    last layer under the optimizer's own step and compares subsets of a batch; here it is each
    token's logits alone under a plain step, so that nothing is computed that the update has not.
    Tokens that are left out keep the penalty to the reference, of weight beta.

    step       length of the step in logits: about learning rate times the squared size of the last
               hidden state; > 0
    max_shift  largest KL between a token's distribution before and after, in nats; > 0
    min_gain   least predicted change of A log p
    beta, clip, clip_high, reduction, level, max_length, advantage_estimator, entropy_coef
               see GRPO
    Source: after Melo, Abate & Gal, arXiv:2510.00819.
    """

    name: ClassVar[str] = "capo"
    engine_only: ClassVar[tuple[str, ...]] = (*GRPO.engine_only, "step", "max_shift", "min_gain")
    step: float = checked(0.5, POSITIVE)
    max_shift: float = checked(0.02, POSITIVE)
    min_gain: float = checked(0.0, FINITE)

    @property
    def side_outputs(self) -> tuple[SideOutput, ...]:  # type: ignore[override]
        """The sum of squares, and the entropy where there is a bonus."""
        return (SUM_SQUARES, *super().side_outputs)

    def _credit(self, inputs: LossInputs) -> Credit:
        """GRPO's, of every token, with zeros."""
        credit = super()._credit(inputs)
        values, metrics = credit.values, dict(credit.metrics)
        if not credit.per_token:
            values = torch.repeat_interleave(values, inputs.lengths)
        probability = inputs.policy_token_logps.detach().double().exp()
        squares = inputs.side["sum_squares"].detach().double()
        gain, shift = predicted(probability, squares, values, self.step)
        kept = (shift <= self.max_shift) & (gain >= self.min_gain)
        counts = inputs.lengths.clamp(min=1)
        metrics["capo/left_out"] = inputs.sums((~kept).double()) / counts
        metrics["capo/shift"] = inputs.sums(shift) / counts
        return Credit(torch.where(kept, values, 0.0), True, metrics)
