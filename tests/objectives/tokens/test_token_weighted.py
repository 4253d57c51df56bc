"""Objectives whose tokens have weights: what an update sums, by hand and against DPO."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyengine import objectives
from pyengine.errors import ConfigError, RequestError
from pyengine.objectives import LossInputs, TokenWeightedObjective


def two(dtype: torch.dtype = torch.float64, **more: object) -> LossInputs:
    """Responses of 3 and 2 tokens and their comparison; the policy knows the first better."""
    policy = torch.tensor([-1.0, -2.0, -3.0, -1.5, -2.5], dtype=dtype)
    given: dict[str, object] = {
        "policy_token_logps": policy,
        "reference_token_logps": torch.tensor([-1.5, -2.0, -4.0, -1.0, -2.5], dtype=dtype),
        "cu_seqlens": torch.tensor([0, 3, 5]),
        "chosen": torch.tensor([0]),
        "rejected": torch.tensor([1]),
        "probability": torch.ones(1, dtype=dtype),
        "weight": torch.ones(1, dtype=dtype),
        "total_weight": 1.0,
        "token_ids": torch.tensor([7, 8, 9, 7, 5]),
    }
    return LossInputs(**(given | more))  # type: ignore[arg-type]


def dpo(h: float, beta: float) -> float:
    return math.log1p(math.exp(-beta * h))


def test_ld_dpo_by_hand() -> None:
    """Log-ratios .5, 0, 1 and -.5, 0; the third token is beyond two and weighs .3: .8 and -.5."""
    output = objectives.LDDPO(beta=0.4, alpha=0.3)(two())
    assert output.loss.item() == pytest.approx(dpo(1.3, 0.4), rel=1e-14)
    slope = -0.4 / (1 + math.exp(0.4 * 1.3))
    expected = [slope, slope, 0.3 * slope, -slope, -slope]
    assert output.dlogps.tolist() == pytest.approx(expected, rel=1e-14)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.4 * 1.3, rel=1e-14)


def test_bmc_by_hand() -> None:
    """7 is in both. 1 / p is e^2 and more, so delta 1.5 bounds it but for the policy's last token.

    With log p -0.1 there, 1 / p = 1.10517: weights 1, 2.5, 2.5 and 1, 2.10517.
    """
    x = two()
    x.policy_token_logps[4] = -0.1
    output = objectives.BMC(beta=0.1, delta=1.5)(x)
    chosen = (-1.0 - 2.5 * 5) - (-1.5 - 2.5 * 6)
    last = 1 + math.exp(0.1)
    rejected = (-1.5 - 0.1 * last) - (-1.0 - 2.5 * 2.5)
    assert output.loss.item() == pytest.approx(dpo(chosen - rejected, 0.1), rel=1e-14)
    assert (output.dlogps[4] / output.dlogps[3]).item() == pytest.approx(last, rel=1e-14)
    of_policy = objectives.BMC(beta=0.1, delta=1.5, reference_weights="policy")(x)
    rejected = (-1.5 - 0.1 * last) - (-1.0 - last * 2.5)
    assert of_policy.loss.item() == pytest.approx(dpo(chosen - rejected, 0.1), rel=1e-14)


def test_edited_tokens_are_those_out_of_the_longest_matches() -> None:
    ours, theirs = objectives.edited_tokens((1, 2, 3, 4), (9, 2, 3, 5, 4))
    assert ours == (True, False, False, False)
    assert theirs == (True, False, False, True, False)
    assert objectives.edited_tokens((), (1,)) == ((), (True,))


def test_sparsepo_by_hand() -> None:
    """Masks 1, 0, .5 | 1, 1 and KL masks 1, 1, 0 | .5, 0: h = 1 + .5, K = .3 and .2."""
    mask = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0])
    kl_mask = torch.tensor([1.0, 1.0, 0.0, 0.5, 0.0])
    x = two(
        token_columns={"reward_mask": mask, "kl_mask": kl_mask},
        side={"kl": torch.tensor([0.1, 0.2, 0.9, 0.4, 0.7], dtype=torch.float64)},
    )
    output = objectives.SparsePO(beta=0.5)(x)
    z = 1.5 - 0.2 + 0.3
    assert output.loss.item() == pytest.approx(dpo(z, 0.5), rel=1e-14)
    slope = -0.5 / (1 + math.exp(0.5 * z))
    assert output.dlogps.tolist() == pytest.approx([slope, 0, slope / 2, -slope, -slope])
    assert output.dside["kl"].tolist() == pytest.approx([slope, slope, 0, -slope / 2, 0])


SAME_AS_DPO = [
    objectives.LDDPO(alpha=1.0),
    objectives.BMC(beta=0.1, delta=0.0),
    objectives.WeightedTokenDPO(),
]


@pytest.mark.parametrize("objective", SAME_AS_DPO, ids=lambda o: o.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_are_dpo(objective: TokenWeightedObjective, dtype: torch.dtype) -> None:
    x = two(dtype, token_columns={"token_weight": torch.ones(5)})
    ours, theirs = objective(x), objectives.DPO(beta=0.1)(x)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    torch.testing.assert_close(ours.dlogps, theirs.dlogps)


def test_sparsepo_of_full_masks_is_tdpo1() -> None:
    kl = {"kl": torch.tensor([0.1, 0.2, 0.9, 0.4, 0.7], dtype=torch.float64)}
    x = two(token_columns={"reward_mask": torch.ones(5)}, side=kl)
    ours, theirs = objectives.SparsePO()(x), objectives.TDPO(version=1)(x)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-14)
    torch.testing.assert_close(ours.dside["kl"], theirs.dside["kl"])


def test_gradient_is_that_of_finite_differences_with_the_weights_held() -> None:
    """Of two comparisons of one response; BMC's weights do not move with the probability."""
    objective = objectives.LDDPO(beta=0.3, alpha=0.3)
    pair = {
        "chosen": torch.tensor([0, 1]),
        "rejected": torch.tensor([1, 0]),
        "probability": torch.tensor([1.0, 0.7], dtype=torch.float64),
        "weight": torch.tensor([1.0, 0.5], dtype=torch.float64),
        "total_weight": 1.5,
    }
    start = two(**pair)
    slopes = objective(start).dlogps
    for i in range(5):
        losses = []
        for step in (1e-6, -1e-6):
            moved = start.policy_token_logps.clone()
            moved[i] += step
            losses.append(objective(two(**(pair | {"policy_token_logps": moved}))).loss.item())
        assert slopes[i].item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-7)


def test_far_log_ratios_stay_finite() -> None:
    far = torch.tensor([-1e4, 0.0, -1e4, -1.0, -1e4], dtype=torch.float32)
    x = two(torch.float32, policy_token_logps=far)
    for objective in (objectives.LDDPO(), objectives.BMC()):
        output = objective(x)
        assert math.isfinite(output.loss.item())
        assert bool(output.dlogps.isfinite().all())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"\[weighted_token_dpo\] needs token_weight of every token: give it in Feedback\.tok"),
        (
            {"token_weight": torch.tensor([1.0, 1.0, math.nan, 1.0, 1.0])},
            "token_weight must be given for every token and be >= 0 but is nan somewhere",
        ),
        ({"token_weight": torch.tensor([1.0, 1.0, -0.5, 1.0, 1.0])}, "but is -0.5 somewhere"),
    ],
)
def test_weights_that_are_missing_or_negative(columns: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        objectives.WeightedTokenDPO()(two(token_columns=columns))


def test_what_else_is_refused() -> None:
    with pytest.raises(RequestError, match=r"\[bmc\] needs the ids of the responses' tokens"):
        objectives.BMC()(two(token_ids=None))
    with pytest.raises(ConfigError, match=r"\[ld_dpo\] alpha must be in \[0, 1\] but is 1.5"):
        objectives.LDDPO(alpha=1.5)
    with pytest.raises(ConfigError, match=r"reference_weights must be one of reference, po"):
        objectives.BMC(reference_weights="none")
