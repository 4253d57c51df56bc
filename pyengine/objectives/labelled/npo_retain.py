"""Unlearning with a retain set: negative preference optimisation beside what is to be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.objectives.labelled.nll import nll_slope
from pyengine.objectives.labelled.npo import NPO
from pyengine.rules import NOT_NEGATIVE, POSITIVE, checked, one_of


@dataclass(frozen=True)
class NPORetain(PointwiseObjective):
    """npo's -(2 / beta) log sigmoid(-beta rho) where the label is 0, retain NLL where it is 1.

    rho is a response's log-ratio of policy and reference. Responses labelled 0 are to be forgotten,
    those labelled 1 to be kept; the loss is the mean over the responses of both, where the paper
    adds the means of a forget and a retain batch of one size. At policy == reference a response to
    be forgotten has (2 / beta) log 2.

    beta     how soon the push fades; > 0
    retain   weight of what is to be kept
    average  of its NLL: "example" per token of the response, or "sum"
    labels   1 keep, 0 forget
    lengths  tokens of each response, for the averages
    Source: Zhang et al., arXiv:2404.05868, section 3.2 (NPO + RT).
    """

    name: ClassVar[str] = "npo_retain"
    inputs: ClassVar[Mapping[str, float | None]] = {"labels": None, "lengths": 0.0}
    beta: float = checked(0.1, POSITIVE)
    retain: float = checked(1.0, NOT_NEGATIVE)
    average: str = checked("example", one_of("example", "sum"))

    def terms(self, x: Examples) -> Sequence[Term]:
        """NLL's log-prob is the log-ratio plus the reference's."""
        labels = x["labels"]
        [forget] = NPO(self.beta).terms(x)
        slope = nll_slope(x, "response", self.average)
        return [
            replace(forget, scale=(1 - labels) * forget.scale),
            Term("linear", {"response": slope}, slope * x.ref("response"), self.retain * labels),
        ]
