"""Unlikelihood, Cringe and Pairwise Cringe: by hand, at their limits, by finite differences."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pyengine import objectives
from pyengine.errors import ConfigError, RequestError
from pyengine.objectives import LossInputs, Objective, cringe_tokens, unlikelihood_tokens

POLICY = torch.tensor([-0.5, -1.0, -2.0, -0.25, -3.0], dtype=torch.float64)
OTHERS = torch.tensor(
    [[-1.0, -2.0], [-0.5, -1.5], [-0.2, -4.0], [-1.8, -2.0], [-0.1, -3.5]], dtype=torch.float64
)


def two(unit: str = "response", k: int = 1) -> LossInputs:
    """Responses of 2 and 3 tokens, the first wanted; and their comparison."""
    ones = torch.ones(1 if unit == "comparison" else 2, dtype=torch.float64)
    return LossInputs(
        policy_token_logps=POLICY.clone(),
        reference_token_logps=None,
        cu_seqlens=torch.tensor([0, 2, 5]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        probability=torch.ones(1, dtype=torch.float64),
        weight=ones,
        total_weight=float(len(ones)),
        columns={"labels": torch.tensor([1.0, 0.0], dtype=torch.float64)},
        side={"alternatives": OTHERS[:, :k].clone()},
    )


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_unlikelihood_by_hand() -> None:
    """(.5 + 1) / 2, and the mean of -log(1 - p) over three tokens; then their mean."""
    bad = sum(-math.log(1 - math.exp(lp)) for lp in (-2.0, -0.25, -3.0))
    output = objectives.Unlikelihood(alpha=0.5)(two())
    assert output.loss.item() == pytest.approx((0.75 + 0.5 * bad / 3) / 2, rel=1e-14)
    summed = objectives.Unlikelihood(alpha=0.5, average="sum")(two())
    assert summed.loss.item() == pytest.approx((1.5 + 0.5 * bad) / 2, rel=1e-14)
    assert summed.metrics["logps"].tolist() == pytest.approx([-1.5, -5.25])


def test_cringe_by_hand() -> None:
    """s - s+ is -1.8, 1.55 and -2.9 with the likeliest other word."""
    bad = softplus(-1.8) + softplus(1.55) + softplus(-2.9)
    output = objectives.Cringe(alpha=2.0, average="sum")(two())
    assert output.loss.item() == pytest.approx((1.5 + 2 * bad) / 2, rel=1e-14)


def test_cringe_is_the_mean_over_the_drawn_word() -> None:
    """Of the second token: words -.5 and -1.5 with probabilities s(1) and s(-1)."""
    p = 1 / (1 + math.exp(-1))
    expected = p * softplus(-0.5) + (1 - p) * softplus(0.5)
    assert cringe_tokens(POLICY, OTHERS)[1].item() == pytest.approx(expected, rel=1e-14)
    generator = torch.Generator().manual_seed(1)
    draws = torch.multinomial(OTHERS[1].softmax(0), 200_000, True, generator=generator)
    sampled = torch.nn.functional.softplus(POLICY[1] - OTHERS[1][draws])
    assert abs(sampled.mean().item() - expected) < 5 * sampled.std().item() / 200_000**0.5


@pytest.mark.parametrize("detach", [True, False])
def test_pairwise_cringe_by_hand(detach: bool) -> None:
    """M = -1.5 + 5.25; the gate is sigmoid((1 - M) / 2)."""
    gate = 1 / (1 + math.exp(-(1 - 3.75) / 2))
    bad = softplus(-1.8) + softplus(1.55) + softplus(-2.9)
    objective = objectives.PairwiseCringe(b=1.0, tau=2.0, average="sum", detach_gate=detach)
    output = objective(two("comparison"))
    assert output.loss.item() == pytest.approx(gate * (1.5 + bad), rel=1e-14)
    assert output.metrics["gate"].item() == pytest.approx(gate)


OBJECTIVES = [
    objectives.Unlikelihood(alpha=0.7),
    objectives.Cringe(average="sum"),
    objectives.PairwiseCringe(detach_gate=False, tau=3.0),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_gradients_are_those_of_finite_differences(objective: Objective) -> None:
    x = two(objective.unit)
    output = objective(x)
    step = 1e-6
    for field, slopes in [("policy", output.dlogps), *output.dside.items()]:
        for i in range(5):
            losses = []
            for sign in (step, -step):
                moved = dataclasses.replace(
                    x,
                    policy_token_logps=x.policy_token_logps.clone(),
                    side={n: v.clone() for n, v in x.side.items()},
                )
                given = moved.policy_token_logps if field == "policy" else moved.side[field]
                given.view(-1)[i] += sign
                losses.append(objective(moved).loss.item())
            slope = (losses[0] - losses[1]) / (2 * step)
            assert slopes.reshape(-1)[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-10)


def test_the_draw_gets_no_gradient() -> None:
    """The words' slopes add up to minus the token's: only the difference counts, word by word."""
    output = objectives.Cringe(k=2, average="sum")(two(k=2))
    moved = output.dside["alternatives"].sum(1)
    torch.testing.assert_close(moved[2:], -output.dlogps[2:])
    assert moved[:2].tolist() == [0, 0]


def test_certain_and_impossible_tokens_stay_finite() -> None:
    logps = torch.tensor([0.0, -1e4, -1e-9], dtype=torch.float64, requires_grad=True)
    losses = unlikelihood_tokens(logps)
    assert losses[1].item() == 0
    assert losses[0].item() == pytest.approx(-math.log(1e-7), rel=1e-6)
    (slope,) = torch.autograd.grad(losses.sum(), logps)
    assert bool(slope.isfinite().all())
    far = cringe_tokens(torch.tensor([0.0, -1e4]), torch.tensor([[-1e4], [0.0]]))
    assert far.tolist() == [1e4, 0.0]


def test_what_is_refused() -> None:
    x = two()
    with pytest.raises(RequestError, match=r"\[cringe\] needs alternatives of every token's dist"):
        objectives.Cringe()(dataclasses.replace(x, side={}))
    with pytest.raises(RequestError, match=r"\[unlikelihood\] needs labels of every response"):
        objectives.Unlikelihood()(dataclasses.replace(x, columns={}))
    soft = dataclasses.replace(two("comparison"), probability=torch.tensor([0.8]))
    with pytest.raises(RequestError, match=r"\[pairwise_cringe\] takes no probabilities"):
        objectives.PairwiseCringe()(soft)
    with pytest.raises(ConfigError, match=r"\[cringe\] k must be an integer >= 1 but is 0"):
        objectives.Cringe(k=0)
