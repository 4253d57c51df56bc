"""Unified alignment of demonstrations and pointwise preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import POSITIVE, checked


@dataclass(frozen=True)
class ULMA(PointwiseObjective):
    """-lp where the label is 1, -log sigmoid(-beta rho) where it is 0.

    Good responses are demonstrations: lp is their summed log-prob. Bad ones are pushed away from
    the reference: rho is the log-ratio of policy and reference; at policy == reference their loss
    is log 2. The paper's partition term beta log Z is taken as 0.

    beta    scale of the log-ratio; > 0
    labels  1 good, 0 bad; between them the two losses are mixed
    Source: Cai et al., arXiv:2312.02554.
    """

    name: ClassVar[str] = "ulma"
    inputs: ClassVar[Mapping[str, float | None]] = {"labels": None}
    beta: float = checked(0.1, POSITIVE)

    def terms(self, x: Examples) -> Sequence[Term]:
        """lp is the log-ratio plus the reference's log-prob."""
        labels = x["labels"]
        return [
            Term("linear", {"response": -1.0}, -x.ref("response"), labels),
            Term("logistic", {"response": -self.beta}, scale=1 - labels),
        ]
