"""Every objective with inputs to try it on: log-probs of real size, and what else it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyengine import objectives
from pyengine.objectives import (
    PairwiseObjective,
    TokenWeightedObjective,
    pairwise_loss,
    pointwise_loss,
)
from pyengine.objectives.available import OBJECTIVES

Draw = Callable[[int, torch.Generator], Tensor]


def uniform(low: float, high: float) -> Draw:
    return lambda n, g: low + (high - low) * torch.rand(n, generator=g, dtype=torch.float64)


def bits(n: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (n,), generator=g).double()


def many(n: int, g: torch.Generator) -> Tensor:
    return torch.randint(150, 300, (n,), generator=g).double()


def counts(n: int, g: torch.Generator) -> Tensor:
    return torch.randint(1, 60, (n,), generator=g).double()


@dataclass(frozen=True)
class Case:
    """An objective as it is tried.

    inputs          keyword -> how (B,) values of it are drawn
    options         hyperparameters other than the defaults
    differentiable  further keywords that the loss is differentiable in
    by_rank         losses belong to ranks, not to examples: their order does not follow the inputs'
    constant        a number taken from the batch has no gradient, unlike in finite differences
    """

    name: str
    inputs: Mapping[str, Draw] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    differentiable: Sequence[str] = ()
    by_rank: bool = False
    constant: bool = False

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def is_pairwise(self) -> bool:
        return issubclass(OBJECTIVES.class_of(self.name), PairwiseObjective)

    @property
    def weighs_tokens(self) -> bool:
        """Whether log-probs are sums that an update weighs itself."""
        return issubclass(OBJECTIVES.class_of(self.name), TokenWeightedObjective)

    @property
    def needs_side_outputs(self) -> bool:
        return bool(objectives.get(self.name, **self.options).side_outputs)

    def draw(self, count: int, seed: int = 0, spread: float = 3.0) -> dict[str, Tensor]:
        """Keyword arguments of the plain function, all float64 (count,)."""
        g = torch.Generator().manual_seed(seed)

        def logps() -> Tensor:
            return -torch.rand(count, generator=g, dtype=torch.float64) * 200 - 5

        def near(x: Tensor) -> Tensor:
            return x + torch.randn(count, generator=g, dtype=torch.float64) * spread

        names = ["chosen_logps", "rejected_logps"] if self.is_pairwise else ["logps"]
        given = {name: logps() for name in names}
        given |= {f"ref_{name}": near(given[name]) for name in names}
        return given | {name: draw(count, g) for name, draw in self.inputs.items()}

    def loss(self, given: Mapping[str, Tensor], **options: Any) -> Tensor:
        function = pairwise_loss if self.is_pairwise else pointwise_loss
        return function(self.name, **given, **{**self.options, **options})

    def leaves(self) -> list[str]:
        """Keywords that the loss is differentiable in."""
        names = ["chosen_logps", "rejected_logps"] if self.is_pairwise else ["logps"]
        return [*names, *self.differentiable]


SCORES = {"chosen_scores": uniform(-2, 2), "rejected_scores": uniform(-2, 2)}
SAMPLED = {"chosen_sampler_logps": uniform(-60, -10), "rejected_sampler_logps": uniform(-60, -10)}
LOGPS = uniform(-60, -57)
CURRENT = {"current_chosen_logps": uniform(-60, -10), "current_rejected_logps": uniform(-60, -10)}
BASE = {"base_chosen_logps": uniform(-60, -10), "base_rejected_logps": uniform(-60, -10)}
IMPROVED = [
    f"{operand}_logps"
    for operand in (
        "chosen_from_rejected",
        "rejected_from_chosen",
        "chosen_from_chosen",
        "rejected_from_rejected",
    )
]
LENGTHS: Mapping[str, Draw] = {"chosen_lengths": counts, "rejected_lengths": counts}
KL: Mapping[str, Draw] = {"chosen_kl": uniform(0, 20), "rejected_kl": uniform(0, 20)}
REWARDS: Mapping[str, Draw] = {"rewards": uniform(-2, 2), "values": uniform(-1, 1)}

CASES = [
    Case("alphapo", {"chosen_lengths": many, "rejected_lengths": many}),
    Case("alphapo", {"chosen_lengths": many, "rejected_lengths": many}, {"alpha": -0.5}),
    Case("alphapo", LENGTHS, {"alpha": 0.0}),
    Case("aot", options={"label_smoothing": 0.1}, by_rank=True),
    Case("aot", options={"paired": False}, by_rank=True),
    Case("apo_down"),
    Case("apo_zero"),
    Case("bco", {"labels": bits}, constant=True),
    Case("bco", {"labels": bits, "weight": uniform(0.5, 10)}, {"delta": 0.3}),
    Case("bco_pair"),
    Case("cpo", {"chosen_lengths": counts}),
    Case("cpo", {"chosen_lengths": counts}, {"nll_average": "batch", "label_smoothing": 0.1}),
    Case("cpo", options={"nll_average": "sum"}),
    Case("cpo", options={"alpha": 0.0}),
    Case("discopop"),
    Case("discopop", options={"tau": 0.7, "beta": 0.3}),
    Case("dpop"),
    Case("dro", REWARDS, {"tau": 0.3}),
    Case("dro", REWARDS, {"tau": 2.0, "rescale": True}, ("values",)),
    Case("exo_pair"),
    Case("exo_pair", options={"eps": 0.2}),
    *(
        Case(
            "fdpg",
            {"target_logps": uniform(-60, -10), "sampler_logps": uniform(-60, -10)},
            {"divergence": divergence},
            constant=True,
        )
        for divergence in ("forward_kl", "reverse_kl", "js", "tv")
    ),
    Case("gpo", {"scores": uniform(-2, 2)}, {"beta": 0.1}),
    Case("hinge"),
    Case("nca_pair"),
    Case("nll"),
    Case("nll", {"weight": uniform(0, 2), "lengths": counts}, {"average": "example"}),
    Case("nll", {"lengths": counts}, {"average": "batch"}),
    Case("npo"),
    Case("npo_retain", {"labels": bits, "lengths": counts}),
    Case("npo_retain", {"labels": bits}, {"average": "sum", "retain": 0.3}),
    Case("orpo", LENGTHS),
    Case("orpo", LENGTHS, {"nll_average": "batch", "lam": 0.5}),
    Case("pmpo", {"labels": bits, "kl": uniform(0, 20)}, {"alpha": 0.7}, ("kl",)),
    Case("pointwise_dpo", {"labels": uniform(0, 1)}),
    Case("sigmoid_norm", LENGTHS),
    Case("simpo", LENGTHS),
    Case("simpo", LENGTHS, {"label_smoothing": 0.1, "gamma": 0.3}),
    Case("slic", {"reg_logps": uniform(-200, -5)}, differentiable=("reg_logps",)),
    Case("tdpo", KL, differentiable=("rejected_kl",)),
    Case("tdpo", KL, {"version": 1}, differentiable=("chosen_kl", "rejected_kl")),
    Case("ulma", {"labels": bits}),
    Case("dpo"),
    Case("dpo", {"target": uniform(0, 1)}, {"label_smoothing": 0.2}),
    Case("dr_dpo", options={"beta_prime": 0.7}),
    Case("ipo", {"chosen_lengths": counts, "rejected_lengths": counts}),
    Case("ipo", options={"length_normalize": False}),
    Case("kto", {"labels": bits, "z0": uniform(0, 3)}, {"undesirable_weight": 1.3}),
    Case("bmc"),
    Case("ld_dpo", {"target": uniform(0, 1)}),
    Case("sparsepo", KL, differentiable=("chosen_kl", "rejected_kl")),
    Case("superhf", {"lengths": counts, "kl": uniform(0, 20)}, differentiable=("kl",)),
    Case("weighted_token_dpo"),
    Case("bfpo", {"chosen_safe": bits, "rejected_safe": bits}),
    Case("bfpo", {"chosen_safe": bits, "rejected_safe": bits}, {"b1": 2.0, "alpha": 0.1}),
    Case("cpl"),
    Case("cpl", options={"bias": 0.5, "alpha": 0.1}),
    Case("dno", SCORES),
    Case(
        "dpo_degree",
        {"chosen_degree_logps": LOGPS, "rejected_degree_logps": LOGPS, "target": uniform(0, 1)},
        {"gamma": 0.3},
        ["chosen_degree_logps", "rejected_degree_logps"],
    ),
    Case("dpo_nll", {"chosen_lengths": counts}),
    Case("dpo_nll", {"chosen_lengths": counts, "target": uniform(0, 1)}, {"alpha": 0.3}),
    Case("dpo_rationale", {"rationale_logps": LOGPS}, {"gamma": 0.2}, ["rationale_logps"]),
    Case(
        "dpo_rationale",
        {"rationale_logps": LOGPS, "rationale_lengths": counts, "target": uniform(0, 1)},
        {"length_normalize": True},
        ["rationale_logps"],
    ),
    Case("f_dpo"),
    Case("f_dpo", options={"divergence": "forward_kl"}),
    Case("f_dpo", options={"divergence": "js"}),
    Case("f_dpo", options={"divergence": "alpha", "alpha": 0.3}),
    Case("inpo", CURRENT),
    Case("inpo", CURRENT, {"tau_over_eta": 1.0, "eta": 0.02}),
    Case("irepo", {"target": uniform(0, 1)}),
    Case("irepo", {"target": bits}, {"eps": 0.1}),
    Case("mcts_dpo", {"chosen_visits": counts, "rejected_visits": counts}),
    Case("mmpo", SCORES, {"gamma": 2.2}),
    Case("onpo"),
    Case("p3o", SCORES),
    Case("p3o", SCORES, {"version": 1, "clip": 0.3}),
    Case("p3o", SCORES | SAMPLED, {"old": "sampler", "kl_coef": 0.1}),
    Case("rdpo"),
    Case("rdpo", options={"flip_rate": 0.4}),
    Case("rebel", SCORES, {"eta": 0.5}),
    Case("soft_dpo", {"target": uniform(0, 1)}),
    Case("spin"),
    Case("spin", BASE, {"mixture": 0.3}),
    Case("sppo"),
    Case(
        "sppo",
        {"chosen_win_rate": uniform(0, 1), "rejected_win_rate": uniform(0, 1)},
        {"beta": 0.1, "halve": False},
    ),
    Case(
        "srpo",
        {name: LOGPS for leaf in IMPROVED for name in (leaf, f"ref_{leaf}")},
        {"alpha": 0.3},
        IMPROVED,
    ),
    Case("weighted_dpo", {"weight": uniform(0, 2)}),
    Case(
        "weighted_dpo",
        {"chosen_weight": uniform(0, 1), "rejected_weight": uniform(0, 1), "target": uniform(0, 1)},
    ),
    Case("wpo", {"chosen_weight": uniform(0, 1.5), "rejected_weight": uniform(0, 1.5)}),
    Case(
        "wpo",
        {"chosen_weight": uniform(0, 1.5), "rejected_weight": uniform(0, 1.5)},
        {"clamp": False},
    ),
    Case("xpo", {"explore_logps": LOGPS}, {"alpha": 0.01}, ["explore_logps"]),
    Case("xpo", {"explore_logps": LOGPS, "target": uniform(0, 1)}, {}, ["explore_logps"]),
]
