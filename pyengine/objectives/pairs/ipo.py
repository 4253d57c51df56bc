"""Identity preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PairwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, SWITCH, checked


@dataclass(frozen=True)
class IPO(PairwiseObjective):
    """(h - 1 / (2 beta))^2, h of log-ratios averaged over tokens, or summed.

    beta              the paper's tau: the margin aimed at is 1 / (2 beta); > 0
    length_normalize  averages, as TRL and HALOs have it (its authors agree); False: sums, as the
                      paper writes it
    chosen_lengths, rejected_lengths  tokens of each response, for the averages
    Source: Azar et al., arXiv:2310.12036, eq. 17.
    """

    name: ClassVar[str] = "ipo"
    inputs: ClassVar[Mapping[str, float | None]] = {"chosen_lengths": 0.0, "rejected_lengths": 0.0}
    beta: float = checked(0.1, POSITIVE)
    length_normalize: bool = checked(True, SWITCH)

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        of_h: Mapping[str, float | Tensor] = {"chosen": 1.0, "rejected": -1.0}
        if self.length_normalize:
            of_h = {"chosen": 1 / x.lengths("chosen"), "rejected": -1 / x.lengths("rejected")}
        return [Term("square", of_h, -1 / (2 * self.beta))]
