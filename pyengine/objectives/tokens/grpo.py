"""Group relative policy optimisation, and what followed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.tokens.token_level import (
    ESTIMATOR,
    OPTIONAL_CLIP,
    OPTIONAL_COUNT,
    REDUCTION,
    TokenObjective,
)
from pyengine.ops.token_loss import TokenLevel, TokenPenalty, TokenSurrogate
from pyengine.rules import (
    FINITE,
    NOT_NEGATIVE,
    OPEN_FRACTION,
    checked,
    one_of,
)


@dataclass(frozen=True)
class GRPO(TokenObjective):
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) + beta k3 of each token, r = policy / sampler.

    A is the response's reward, normalised within its group: (r - mean) / (std + 1e-4); 0 in a group
    of equal rewards. k3 = e^(lr - lp) - (lr - lp) - 1 estimates the KL to the reference.
    The defaults are the paper's; TRL's are beta=0 and reduction="token". Dr. GRPO is
    reduction="constant", advantage_estimator="dr_grpo", beta=0; DAPO reduction="token",
    clip_high=0.28, beta=0; GSPO level="sequence".

    beta                 weight of k3; 0: no reference is needed
    clip, clip_high      how far r may fall below 1, and rise above it (as clip where None)
    reduction            "sequence" (the paper), "token", "constant", "sum"; see TokenObjective
    level                r of each "token", or of the "sequence": e^(mean log-ratio of its tokens)
    max_length           tokens that reduction "constant" divides by
    advantage_estimator  of the rewards in the engine
    entropy_coef         of the bonus for the policy's entropy, in the engine; below 0 a penalty
    Source: Shao et al., arXiv:2402.03300, eq. 3; Liu et al., arXiv:2503.20783; Yu et al.,
    arXiv:2503.14476; Zheng et al., arXiv:2507.18071.
    """

    name: ClassVar[str] = "grpo"
    needs_sampler: ClassVar[bool] = True
    engine_only: ClassVar[tuple[str, ...]] = ("advantage_estimator", "entropy_coef")
    beta: float = checked(0.04, NOT_NEGATIVE)
    clip: float = checked(0.2, OPEN_FRACTION)
    clip_high: float | None = checked(None, OPTIONAL_CLIP)
    reduction: str = checked("sequence", REDUCTION)
    level: str = checked("token", one_of("token", "sequence"))
    max_length: int | None = checked(None, OPTIONAL_COUNT)
    advantage_estimator: str = checked("grpo", ESTIMATOR)
    entropy_coef: float = checked(0.0, FINITE)

    @property
    def uses_reference(self) -> bool:
        """Only for k3."""
        return self.beta > 0

    def surrogate(self) -> TokenSurrogate:
        """See the class."""
        high = self.clip if self.clip_high is None else self.clip_high
        penalty: TokenPenalty = "k3" if self.beta > 0 else "none"
        level: TokenLevel = "mean" if self.level == "sequence" else "token"
        return TokenSurrogate("clipped", level, self.clip, high, penalty=penalty, beta=self.beta)
