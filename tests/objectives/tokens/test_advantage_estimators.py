"""Advantages, whitening and returns against hand arithmetic and their limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives import (
    advantages,
    discounted_returns,
    fine_grained_rewards,
    gae,
    kl_estimate,
    kl_shaped_rewards,
    masked_whiten,
    overlong_penalty,
)
from pyengine.objectives.tokens.advantage_estimators import ADVANTAGES


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def given(name: str, prompts: int) -> dict[str, Any]:
    return {"greedy_rewards": torch.zeros(prompts)} if name == "remax" else {}


GROUPWISE = ("grpo", "dr_grpo", "rloo")


def test_the_names_of_the_catalogue() -> None:
    assert sorted(ADVANTAGES) == ["dr_grpo", "grpo", "reinforce_pp", "remax", "rloo", "win_rate"]


def test_group_methods_by_hand() -> None:
    """rewards (1, 2, 6): mean 3, deviations (-2, -1, 3), unbiased variance 14 / 2 = 7.
    rloo: 1 - 4, 2 - 3.5, 6 - 1.5
    """
    r = f64([1.0, 2.0, 6.0])
    assert advantages("dr_grpo", r).tolist() == [[-2.0, -1.0, 3.0]]
    assert advantages("rloo", r).tolist()[0] == pytest.approx([-3.0, -1.5, 4.5], rel=1e-15)
    spread = math.sqrt(7) + 1e-4
    expected = [-2 / spread, -1 / spread, 3 / spread]
    assert advantages("grpo", r).tolist()[0] == pytest.approx(expected, rel=1e-14)
    assert advantages("grpo", r, eps=0).std().item() == pytest.approx(1.0)
    assert advantages("remax", r, greedy_rewards=[2.0]).tolist() == [[-1.0, 0.0, 4.0]]


@pytest.mark.parametrize("name", GROUPWISE)
def test_equal_rewards_and_single_responses_give_exactly_zero(name: str) -> None:
    """0.1 three times has a mean of 0.10000000000000002 in floating point."""
    assert (
        advantages(name, torch.full((2, 3), 0.1, dtype=torch.float64)).tolist() == [[0.0] * 3] * 2
    )
    assert advantages(name, f64([5.0], [1e4])).tolist() == [[0.0], [0.0]]
    assert advantages(name, torch.zeros(0, 3)).shape == (0, 3)
    assert advantages(name, torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize("name", [*GROUPWISE, "remax", "reinforce_pp"])
def test_large_rewards_are_finite_and_float32_agrees(name: str) -> None:
    r = f64([1e4, -1e4, 3.0], [1e4, 1e4, 1e4])
    wide = advantages(name, r, **given(name, 2))
    narrow = advantages(name, r.float(), **given(name, 2))
    assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32)
    assert wide.isfinite().all()
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-3)
    assert torch.equal(advantages(name, np.asarray(r), **given(name, 2)), wide)


@pytest.mark.parametrize("name", GROUPWISE)
def test_a_prompt_does_not_change_another(name: str) -> None:
    r = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([advantages(name, row.unsqueeze(0)) for row in r])
    assert torch.equal(advantages(name, r), alone)
    shifted = advantages(name, r + f64([3.0], [-1.0], [0.5]))
    torch.testing.assert_close(shifted, alone, rtol=1e-12, atol=1e-14)


def test_reinforce_pp_by_hand() -> None:
    """rewards (0, 0), (0, 4): mean 1, population variance (1 + 1 + 1 + 9) / 4 = 3.
    baseline  group means off first: (0, 0), (-2, 2): mean 0, variance 2
    lengths   (1, 1), (1, 3): the 4 counts three times: mean 2, variance (3 * 4 + 3 * 4) / 6 = 4
    """
    r = f64([0.0, 0.0], [0.0, 4.0])
    root = math.sqrt(3)
    plain = advantages("reinforce_pp", r).flatten().tolist()
    assert plain == pytest.approx([-1 / root, -1 / root, -1 / root, 3 / root])
    based = advantages("reinforce_pp", r, baseline=True).flatten().tolist()
    assert based == pytest.approx([0.0, 0.0, -math.sqrt(2), math.sqrt(2)])
    by_token = advantages("reinforce_pp", r, lengths=[[1, 1], [1, 3]]).flatten().tolist()
    assert by_token == pytest.approx([-1.0, -1.0, -1.0, 1.0])
    assert advantages("reinforce_pp", torch.full((2, 2), 7.0)).abs().max().item() == 0.0


def test_reinforce_pp_is_the_whitening_of_returns_to_go() -> None:
    """Rewards (1, 2, 5) at the last token of 2, 1 and 3 tokens."""
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    shaped = kl_shaped_rewards(f64(1, 2, 5), torch.zeros(3, 3, dtype=torch.float64), mask, 0.1)
    white = masked_whiten(discounted_returns(shaped, mask), mask, unbiased=False)
    ours = advantages("reinforce_pp", f64([1.0, 2.0, 5.0]), lengths=[[2, 1, 3]])
    torch.testing.assert_close(white, ours.T.expand(3, 3) * mask, rtol=1e-13, atol=1e-14)


def test_fine_grained_rewards_by_hand() -> None:
    """Two kinds, weights 2 and -1, both ending at the second token of the first response."""
    shaped = fine_grained_rewards(
        {"fluent": [[(0, 0.5), (1, 1.0)], []], "toxic": [[(1, 0.25)], [(0, 1.0)]]},
        {"fluent": 2.0, "toxic": -1.0},
        f64([1.0, 2.0, 9.0], [3.0, 9.0, 9.0]),
        [[1, 1, 0], [1, 0, 0]],
        0.1,
    )
    expected = [1.0 - 0.1, 2.0 - 0.25 - 0.2, 0.0, -1.0 - 0.3, 0.0, 0.0]
    assert shaped.flatten().tolist() == pytest.approx(expected)
    whole = fine_grained_rewards(
        {"score": [[(1, 3.0)], [(0, 4.0)]]}, {"score": 1}, f64([1, 2, 9], [3, 9, 9]),
        [[1, 1, 0], [1, 0, 0]], 0.5,
    )  # fmt: skip
    shape = kl_shaped_rewards(f64(3, 4), f64([1, 2, 9], [3, 9, 9]), [[1, 1, 0], [1, 0, 0]], 0.5)
    assert torch.equal(whole, shape)


def test_win_rate_by_hand() -> None:
    """P(0 > 1) = 0.8, P(0 > 2) = 0.4, P(1 > 2) = 0.3; the diagonal does not matter."""
    p = f64([[9.0, 0.8, 0.4], [0.2, 9.0, 0.3], [0.6, 0.7, 9.0]])
    assert advantages("win_rate", p).tolist()[0] == pytest.approx([0.6, 0.25, 0.65])
    with_self = advantages("win_rate", p, include_self=True).tolist()[0]
    assert with_self == pytest.approx([1.7 / 3, 1.0 / 3, 1.8 / 3])
    assert advantages("win_rate", f64([[0.0]])).tolist() == [[0.5]]


def test_gae_by_hand() -> None:
    """gamma 0.5, lam 0.5, rewards (1, 0, 2), values (1, 2, 4), all response tokens.
    deltas      2 - 4 = -2; 0 + 2 - 2 = 0; 1 + 1 - 1 = 1
    advantages  -2; 0 + 0.25 * -2 = -0.5; 1 + 0.25 * -0.5 = 0.875
    """
    a, returns = gae(f64([1, 0, 2]), f64([1, 2, 4]), [[1, 1, 1]], gamma=0.5, lam=0.5)
    assert a.tolist() == [[0.875, -0.5, -2.0]]
    assert returns.tolist() == [[1.875, 1.5, 2.0]]


def test_gae_limits_and_masks() -> None:
    """lam 1: returns to go minus values, whatever these are; tokens off the mask are stepped over,
    so that padding and a gap change nothing.
    """
    g = torch.Generator().manual_seed(1)
    r, v = torch.randn(2, 2, 4, dtype=torch.float64, generator=g)
    everywhere = torch.ones(2, 4)
    a, _ = gae(r, v, everywhere, lam=1.0)
    to_go = r.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(a, to_go - v, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(discounted_returns(r, everywhere), to_go, rtol=1e-13, atol=1e-14)
    a, _ = gae(r, v, everywhere)
    gap = [0, 1, 4, 5]
    wide_r, wide_v = torch.full((2, 2, 7), 77.0, dtype=torch.float64)
    wide_r[:, gap], wide_v[:, gap] = r, v
    mask = torch.zeros(2, 7)
    mask[:, gap] = 1
    wide, returns = gae(wide_r, wide_v, mask)
    assert torch.equal(wide[:, gap], a)
    assert wide[:, [2, 3, 6]].abs().max().item() == returns[:, [2, 3, 6]].abs().max().item() == 0
    assert gae(torch.zeros(1, 0), torch.zeros(1, 0), torch.zeros(1, 0))[0].shape == (1, 0)


def test_whitening_by_hand() -> None:
    """Values 1, 3, 8 kept: mean 4, deviations -3, -1, 4; variance 26 / 2 = 13 or 26 / 3."""
    values, mask = f64([1, 99, 3], [8, 99, math.nan]), [[1, 0, 1], [1, 0, 0]]
    white = masked_whiten(values, mask)
    expected = [-3 / math.sqrt(13), 0, -1 / math.sqrt(13), 4 / math.sqrt(13), 0, 0]
    assert white.flatten().tolist() == pytest.approx(expected, rel=1e-8)
    population = masked_whiten(values, mask, unbiased=False).flatten().tolist()
    assert population == pytest.approx([x * math.sqrt(1.5) for x in expected], rel=1e-8)
    kept = masked_whiten(values, mask, shift_mean=False)
    assert kept[0, 0].item() == pytest.approx(4 - 3 / math.sqrt(13))
    assert kept[0, 1].item() == 0
    assert masked_whiten(f64([5.0]), [[1]]).tolist() == [[0.0]]
    assert masked_whiten(f64([5.0]), [[0]]).tolist() == [[0.0]]


def test_kl_estimators_by_hand() -> None:
    """d = log 2: k1 0.69314718, k2 0.24022651, k3 1/2 - 1 + log 2 = 0.19314718."""
    d, zero = f64(math.log(2)), f64(0.0)
    for estimator, expected in (("k1", 0.69314718), ("k2", 0.24022651), ("k3", 0.19314718)):
        assert kl_estimate(estimator, d, zero).item() == pytest.approx(expected, abs=1e-8)
        assert kl_estimate(estimator, zero, zero).item() == 0.0


def test_k1_and_k3_have_the_divergence_as_their_mean() -> None:
    """Two words of probabilities (0.3, 0.7) and (0.6, 0.4), weighted by the first's."""
    p, q = f64(0.3, 0.7), f64(0.6, 0.4)
    exact = (p * (p / q).log()).sum().item()
    for estimator in ("k1", "k3"):
        assert (p * kl_estimate(estimator, p.log(), q.log())).sum().item() == pytest.approx(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_estimates_of_1e4_are_finite(dtype: torch.dtype) -> None:
    for estimator in ("k1", "k2", "k3"):
        d = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
        k = kl_estimate(estimator, d, torch.zeros(2, dtype=dtype))
        k.sum().backward()
        assert k.isfinite().all()
        assert d.grad.isfinite().all()


def test_shaped_rewards_by_hand() -> None:
    """Coefficient 0.5, KL (1, 2, 9): the score 3 joins the last response token."""
    shaped = kl_shaped_rewards(f64(3, 4), f64([1, 2, 9], [9, 9, 9]), [[1, 1, 0], [0, 0, 0]], 0.5)
    assert shaped.tolist() == [[-0.5, 2.0, 0.0], [0.0, 0.0, 0.0]]


def test_overlong_penalty_by_hand() -> None:
    """Length 10, cache 4: 0 up to 6, then -1/4 a token, -1 from 10 on."""
    assert overlong_penalty([0, 6, 7, 9, 10, 50], 10, 4).tolist() == [0, 0, -0.25, -0.75, -1, -1]


R = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("name", "rewards", "options", "message"),
    [
        ("a2c", R, {}, "[advantages] name must be one of grpo, dr_grpo, rloo, remax, reinforce_pp"),
        ("rloo", R, {"eps": 1}, "[advantages] rloo has no option 'eps'; it has none"),
        ("grpo", R, {"eps": -1}, "[grpo] eps must be >= 0 and finite but is -1"),
        ("reinforce_pp", R, {"baseline": 1}, "[reinforce_pp] baseline must be True or False but"),
        ("win_rate", R, {"include_self": 1}, "[win_rate] include_self must be True or False but"),
        ("grpo", R[0], {}, "[advantages] rewards must be floating point of shape (P, G) but is"),
        ("grpo", R.long(), {}, "[advantages] rewards must be floating point of shape (P, G) but"),
        ("win_rate", R, {}, "[advantages] rewards must be floating point of shape (P, G, G) but"),
        ("win_rate", torch.zeros(1, 2, 3), {}, "[advantages] win_rate needs (P, G, G) probab"),
        ("remax", R, {}, "[advantages] greedy_rewards must be given"),
        ("remax", R, {"greedy_rewards": [1.0]}, "[advantages] greedy_rewards must have shape (2,)"),
        ("reinforce_pp", R, {"lengths": [1]}, "[advantages] lengths must have shape (2, 3) but"),
    ],
)
def test_what_is_refused(name: str, rewards: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as caught:
        advantages(name, rewards, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gae(R, R[0], R), "[gae] values must have shape (2, 3) but got (3,)"),
        (lambda: gae(R, R, R[0]), "[gae] mask must have shape (2, 3) but got (3,)"),
        (lambda: masked_whiten(R[0], R), "[masked_whiten] values must be floating point of shape"),
        (lambda: kl_estimate("k4", R, R), "[kl_estimate] estimator must be one of k1, k2, k3 but"),
        (lambda: kl_estimate("k1", R, R[0]), "[kl_estimate] ref_logps must have shape (2, 3) but"),
        (lambda: kl_shaped_rewards(R, R, R, 0.1), "[kl_shaped_rewards] scores must have shape (2,"),
        (
            lambda: fine_grained_rewards({"a": []}, {}, R, R, 0.1),
            "[fine_grained_rewards] weights must be of the kinds ['a'] but are of []",
        ),
        (
            lambda: fine_grained_rewards({"a": [[]]}, {"a": 1}, R, R, 0.1),
            "[fine_grained_rewards] segments['a'] must have a list for each of 2 responses but has",
        ),
        (
            lambda: fine_grained_rewards({"a": [[(3, 1.0)], []]}, {"a": 1}, R, R, 0.1),
            "[fine_grained_rewards] segments['a'][0] must end at response tokens but one ends at 3",
        ),
        (
            lambda: overlong_penalty([1], 5, 6),
            "[overlong_penalty] cache must be in [1, 5] but",
        ),
    ],
)
def test_what_the_functions_refuse(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
