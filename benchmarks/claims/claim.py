"""What an experiment on a published claim gives, and how many seeds must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Figures = dict[str, float]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper in miniature.

    criterion  the inequality that must hold, in words
    run        seed -> figures
    holds      whether figures meet the criterion
    seeds      how many; 1 where nothing is random
    slow       more than about 5 s on a quiet core
    note       what of the paper's claim is not shown here
    """

    title: str
    paper: str
    criterion: str
    run: Callable[[int], Figures]
    holds: Callable[[Figures], bool]
    seeds: int = 5
    slow: bool = False
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """Figures of every seed, and how many met the criterion: 4 of 5 must, or the only one."""

    claim: Claim
    figures: Sequence[Figures]
    met: int

    @property
    def passed(self) -> bool:
        """Whether the claim is shown."""
        return self.met >= max(len(self.figures) * 4 // 5, 1)

    @property
    def verdict(self) -> str:
        """As the page has it: yes or no, and of how many seeds."""
        seeds = f" ({self.met} of {len(self.figures)} seeds)" if len(self.figures) > 1 else ""
        return ("yes" if self.passed else "**no**") + seeds

    def line(self) -> str:
        """Means over the seeds."""
        names = self.figures[0]
        means = {n: sum(f[n] for f in self.figures) / len(self.figures) for n in names}
        return ", ".join(f"{name} {value:.4g}" for name, value in means.items())


def outcome(claim: Claim) -> Outcome:
    """Runs all seeds."""
    figures = [claim.run(seed) for seed in range(claim.seeds)]
    return Outcome(claim, figures, sum(claim.holds(f) for f in figures))
