"""REINFORCE with a leave-one-out baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.tokens.token_level import (
    ESTIMATOR,
    OPTIONAL_CLIP,
    TokenObjective,
)
from pyengine.ops.token_loss import TokenSurrogate
from pyengine.rules import NOT_NEGATIVE, OPEN_FRACTION, checked


@dataclass(frozen=True)
class RLOO(TokenObjective):
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) of each response, r = policy / sampler of all
    its tokens, A its reward minus the mean of its group's others.

    At policy == sampler the slope on each log-prob is REINFORCE's, -A over the number of responses.
    The clipping is TRL's; the paper takes one step a sample, where r = 1.

    clip, clip_high      how far r may fall below 1, and rise above it (as clip where None)
    advantage_estimator  of the rewards in the engine
    kl_coef              of the log-ratio (k1) of sampler and reference in the rewards; >= 0
    Source: Ahmadian et al., arXiv:2402.14740.
    """

    name: ClassVar[str] = "rloo"
    needs_sampler: ClassVar[bool] = True
    per_token: ClassVar[bool] = False
    clip: float = checked(0.2, OPEN_FRACTION)
    clip_high: float | None = checked(None, OPTIONAL_CLIP)
    advantage_estimator: str = checked("rloo", ESTIMATOR)
    kl_coef: float = checked(0.05, NOT_NEGATIVE)

    def surrogate(self) -> TokenSurrogate:
        """See the class."""
        high = self.clip if self.clip_high is None else self.clip_high
        return TokenSurrogate("clipped", "sum", self.clip, high)
