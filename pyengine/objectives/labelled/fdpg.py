"""Policy gradients of f-divergences to a target distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.objective import LossInputs
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import SWITCH, checked, one_of

MAX_LOG_RATIO = 20.0


def f_prime(divergence: str, log_t: Tensor) -> Tensor:
    """f'(t) up to a constant, t = policy / target given as its logarithm.

    "forward_kl" KL(target || policy), "reverse_kl", "js" Jensen-Shannon, "tv" total variation.
    """
    if divergence == "forward_kl":
        return -torch.exp(-log_t)
    if divergence == "reverse_kl":
        return log_t + 1
    if divergence == "js":
        return math.log(2) - F.softplus(-log_t)
    return torch.sign(log_t) / 2


@dataclass(frozen=True)
class FDPG(PointwiseObjective):
    """sg[(pi / q) (f'(pi / p) - b)] lp: over samples of q its slope is that of D_f(pi || p).

    pi is the policy, q the model that sampled the response, p the target, such as the reference
    times e^(reward / beta), normalised. sg: no gradient. Log-ratios are cut at -20 and 20.

    divergence     f: "forward_kl" KL(p || pi) (DPG), "reverse_kl" KL(pi || p), "js", "tv"
    target_logps   log p of every response, its normaliser included
    sampler_logps  log q; an update has them from `generate`
    baseline       b, such as the running mean of f'; 0 where it is not given
    leave_one_out  whether b is, in an update, the mean f' of the prompt's other responses, 0 of one
                   alone, in the place of a given one
    Source: Go et al., arXiv:2302.08215.
    """

    name: ClassVar[str] = "fdpg"
    needs_reference = False
    needs_sampler: ClassVar[bool] = True
    inputs: ClassVar[Mapping[str, float | None]] = {
        "target_logps": None,
        "sampler_logps": None,
        "baseline": 0.0,
    }
    divergence: str = checked("forward_kl", one_of("forward_kl", "reverse_kl", "js", "tv"))
    leave_one_out: bool = checked(False, SWITCH)

    @property
    def reward_scale(self) -> float:
        """1: the loss has no reward."""
        return 1.0

    def computed(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The leave-one-out baseline, where it is asked for."""
        if not self.leave_one_out:
            return {}
        if inputs.group is None:
            raise RequestError(f"[{self.name}] needs the group of every response")
        policy = inputs.sequence_logps(inputs.policy_token_logps.detach())
        log_t = policy - self.column("target_logps", inputs)
        slopes = f_prime(self.divergence, log_t.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
        sums, counts = torch.zeros_like(slopes), torch.zeros_like(slopes)
        sums.index_add_(0, inputs.group, slopes)
        counts.index_add_(0, inputs.group, torch.ones_like(slopes))
        others = (counts[inputs.group] - 1).clamp(min=1)
        return {"baseline": (sums[inputs.group] - slopes) / others}

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        logps = x.policy["response"].detach()

        def apart(name: str) -> Tensor:
            return (logps - x.column(name)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

        slope = f_prime(self.divergence, apart("target_logps")) - x.column("baseline")
        return [Term("linear", {"response": apart("sampler_logps").exp() * slope})]
