"""Proximal policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.arguments import first_tensor, like
from pyengine.objectives.core.kl_estimates import token_mask
from pyengine.objectives.tokens.token_level import (
    ESTIMATOR,
    OPTIONAL_CLIP,
    OPTIONAL_COUNT,
    OPTIONAL_DUAL_CLIP,
    REDUCTION,
    TokenObjective,
)
from pyengine.ops.token_loss import TokenSurrogate
from pyengine.rules import (
    FINITE,
    NOT_NEGATIVE,
    OPEN_FRACTION,
    checked,
    one_of,
)


@dataclass(frozen=True)
class PPO(TokenObjective):
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) of each token, r = policy / sampler.

    At policy == sampler the loss is the mean of -A and its slope on each log-prob -A over the
    number of tokens. There is no critic in the engine: advantages of a critic of yours (`gae`, with
    `ppo_value_loss`) go into Feedback.token_columns["advantages"]. With advantage_estimator
    "reinforce_pp" it is REINFORCE++, whose advantages are normalised over the whole batch, whatever
    its micro-batches are.

    clip                 how far r may fall below 1, in (0, 1)
    clip_high            how far it may rise above 1; as clip where None
    dual_clip            c > 1: at A < 0 the loss is at most -c A; None: no bound
    reduction            "token" as TRL and OpenRLHF have it; see TokenObjective
    max_length           tokens that reduction "constant" divides by
    advantage_estimator  of the rewards in the engine
    kl_coef              of the log-ratio of sampler and reference in the engine's rewards; >= 0
    kl_level             whether that is taken off the reward of the whole "response", or token by
                         token, where each answers for itself and those after it (REINFORCE++)
    entropy_coef         of the bonus for the policy's entropy, in the engine; below 0 a penalty
    Source: Schulman et al., arXiv:1707.06347, eq. 7; dual clip: Ye et al., arXiv:1912.09729;
    REINFORCE++: Hu, arXiv:2501.03262.
    """

    name: ClassVar[str] = "ppo"
    needs_sampler: ClassVar[bool] = True
    clip: float = checked(0.2, OPEN_FRACTION)
    clip_high: float | None = checked(None, OPTIONAL_CLIP)
    dual_clip: float | None = checked(None, OPTIONAL_DUAL_CLIP)
    reduction: str = checked("token", REDUCTION)
    max_length: int | None = checked(None, OPTIONAL_COUNT)
    advantage_estimator: str = checked("reinforce_pp", ESTIMATOR)
    kl_coef: float = checked(0.0, NOT_NEGATIVE)
    kl_level: str = checked("response", one_of("response", "token"))
    entropy_coef: float = checked(0.0, FINITE)

    def surrogate(self) -> TokenSurrogate:
        """See the class."""
        high = self.clip if self.clip_high is None else self.clip_high
        return TokenSurrogate("clipped", low=self.clip, high=high, dual=self.dual_clip)


def ppo_value_loss(
    values: Any, old_values: Any, returns: Any, mask: Any, clip: float | None = 0.2
) -> Tensor:
    """() mean over tokens of max((V - R)^2, (V_clipped - R)^2) / 2, all (B, T).

    V_clipped keeps within clip of the old value; None: no clipping. Raises ValueError (shapes).
    Source: the code of Schulman et al., arXiv:1707.06347.
    """
    who = "ppo_value_loss"
    v = first_tensor(who, "values", values, "(B, T)", 2)
    keep = token_mask(who, mask, v)
    target = like(who, "returns", returns, v, tuple(v.shape))
    squared = (v - target) ** 2
    if clip is not None:
        old = like(who, "old_values", old_values, v, tuple(v.shape))
        near = old + (v - old).clamp(-clip, clip)
        squared = torch.maximum(squared, (near - target) ** 2)
    return squared.masked_fill(~keep, 0).sum() / 2 / keep.sum().clamp(min=1)
