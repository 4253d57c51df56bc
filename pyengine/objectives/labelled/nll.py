"""Negative log-likelihood, weighted: what filtered and reward-ranked fine-tuning minimise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.sequence import PointwiseObjective
from pyengine.objectives.core.terms import Term
from pyengine.rules import checked, one_of

NLL_AVERAGE = one_of("example", "batch", "sum")


def nll_slope(x: Examples, operand: str, average: str) -> float | Tensor:
    """d nll / d summed log-prob: -1 of "sum", -1 / tokens of "example".

    Of "batch" -1 / mean tokens: the mean over examples is then that over all tokens of the batch.
    """
    if average == "sum":
        return -1.0
    lengths = x.lengths(operand)
    return -1 / (lengths.mean() * torch.ones_like(lengths) if average == "batch" else lengths)


@dataclass(frozen=True)
class NLL(PointwiseObjective):
    """-weight lp, lp the response's log-prob: summed, or averaged over tokens. No reference.

    With weights this is RAFT and best-of-K fine-tuning (1 for the best of a prompt's responses,
    0 for the others), ReST-EM and expert iteration (1 where the answer is right) and C-RLFT
    (exp(reward / beta) of the response's class: 1 expert, 0.1 other).

    average  "sum" as the papers write it; "example" per token of the response; "batch" per token
             of the batch, as TRL's sft has it: the mean length is over the batch's responses
    weight   of each response; 1 where it is not given
    lengths  tokens of each response, for the averages
    Source: Dong et al., arXiv:2304.06767; Singh et al., arXiv:2312.06585; Wang et al.,
    arXiv:2309.11235.
    """

    name: ClassVar[str] = "nll"
    needs_reference = False
    inputs: ClassVar[Mapping[str, float | None]] = {"weight": 1.0, "lengths": 0.0}
    average: str = checked("sum", NLL_AVERAGE)

    @property
    def batch_global(self) -> bool:  # type: ignore[override]
        """Where the average is over the batch's tokens."""
        return self.average == "batch"

    def terms(self, x: Examples) -> Sequence[Term]:
        """See the class."""
        return [Term("linear", {"response": x["weight"] * nll_slope(x, "response", self.average)})]
