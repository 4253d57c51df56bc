"""Hard prompts are worth more correct samples than easy ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.errors import RequestError
from pyengine.preferences.allocations.allocation import PromptStats
from pyengine.preferences.allocations.in_stages import InStages
from pyengine.preferences.allocations.until_k_correct import missing
from pyengine.rules import COUNT, checked


@dataclass(frozen=True)
class Difficulty(InStages):
    """Correct samples in proportion to a prompt's difficulty, the share of its samples that failed.

    The hardest prompt gets k, the others k * difficulty / the greatest difficulty, rounded to the
    nearest (halves up). Asked again until each has them, as "until_k_correct" is.

    k            correct samples of the hardest prompt
    cap          samples of a prompt at most, of those that were tried too
    per_missing  samples asked for at once for each correct one that is missing
    first, stages  see InStages
    Raises RequestError for a prompt that was never tried: its difficulty is not known.
    Source: prop2diff, Tong et al., arXiv:2407.13690, section 3.1.
    """

    name: ClassVar[str] = "difficulty"
    k: int = checked(4, COUNT)
    cap: int = checked(64, COUNT)
    per_missing: int = checked(1, COUNT)

    def __call__(self, stats: Sequence[PromptStats], budget: int) -> list[int]:
        """See Allocation."""
        difficulty = [1 - rate for rate in pass_rates(self.name, stats)]
        most = max(difficulty, default=0.0)
        wanted = [int(self.k * d / most + 0.5) if most > 0 else 0 for d in difficulty]
        return missing(stats, wanted, self.cap, self.per_missing, budget)


def pass_rates(who: str, stats: Sequence[PromptStats]) -> list[float]:
    """Shares of the samples that were accepted. Raises RequestError where none was tried."""
    for i, s in enumerate(stats):
        if s.tried < 1 or not 0 <= s.correct <= s.tried:
            raise RequestError(
                f"[{who}] stats[{i}] must have tried >= 1 and correct in [0, tried] but they are "
                f"{s.tried} and {s.correct}"
            )
    return [s.correct / s.tried for s in stats]
