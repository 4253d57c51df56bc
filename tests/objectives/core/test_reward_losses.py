"""Losses of reward models against hand arithmetic, their limits and finite differences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives import ensemble_reward, gpm_score, pairwise_loss, reward_loss

LOG2 = math.log(2.0)


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


ORDER = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 2, 0], [2, 1, 0]])
# name, outputs, further inputs and options; the outputs are what slopes are taken in
CASES = [
    ("bradley_terry", [draw(4), draw(4, seed=1)], {}),
    ("bradley_terry", [draw(4), draw(4, seed=1)], {"label_smoothing": 0.2, "center": 0.01}),
    ("bradley_terry", [draw(4), draw(4, seed=1)], {"margin": draw(4, seed=2)}),
    ("soft_bt", [draw(4), draw(4, seed=1)], {"target": f64(0, 0.3, 0.8, 1), "center": 0.1}),
    ("gpm", [draw(4, 6), draw(4, 6, seed=1)], {"tau": 0.7}),
    ("gpm", [draw(4, 2), draw(4, 2, seed=1)], {"gate": draw(4, 1).abs(), "target": 0.9}),
    (
        "mean_variance",
        [draw(4), draw(4, seed=1)],
        {"chosen_variances": f64(0.1, 1, 2, 9), "rejected_variances": 0.5},
    ),
    ("plackett_luce", [draw(4, 3)], {"order": ORDER}),
    ("regression", [draw(4)], {"target": f64(1, 0, -2, 0.5)}),
]
each_case = pytest.mark.parametrize(("name", "outputs", "given"), CASES)


def test_bradley_terry_hand_arithmetic() -> None:
    """rewards 2 and 0.5, margin 0.5: d - m = 1.
    loss                  log(1 + e^-1) = 0.31326169
    label_smoothing 0.2   0.8 * 0.31326169 + 0.2 * log(1 + e) = 0.25060935 + 0.2 * 1.31326169
                          = 0.51326169
    center 0.01           + 0.01 * 2.5^2 = 0.0625: 0.57576169
    """
    w, r = f64(2.0), f64(0.5)
    assert reward_loss("bradley_terry", w, r, margin=0.5).item() == pytest.approx(0.31326169)
    options = {"margin": f64(0.5), "label_smoothing": 0.2}
    assert reward_loss("bradley_terry", w, r, **options).item() == pytest.approx(0.51326169)
    options["center"] = 0.01
    assert reward_loss("bradley_terry", w, r, **options).item() == pytest.approx(0.57576169)


def test_bradley_terry_is_dpo_of_the_same_rewards() -> None:
    w, r = draw(5), draw(5, seed=1)
    none = torch.zeros(5, dtype=torch.float64)
    dpo = pairwise_loss("dpo", w, r, none, none, beta=1.0)
    torch.testing.assert_close(reward_loss("bradley_terry", w, r), dpo, rtol=1e-14, atol=0)


def test_soft_bt_hand_arithmetic() -> None:
    """d = 1, p = 0.7: 0.7 * 0.31326169 + 0.3 * 1.31326169 = 0.61326169; its least value over d is
    the entropy of p, at d = logit(0.7) = 0.84729786: 0.61086430.
    """
    assert reward_loss("soft_bt", f64(1.0), f64(0.0), target=0.7).item() == pytest.approx(
        0.61326169
    )
    d = f64(0.84729786).requires_grad_()
    loss = reward_loss("soft_bt", d, f64(0.0), target=0.7)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.61086430)
    assert d.grad.item() == pytest.approx(0.0, abs=1e-8)


def test_plackett_luce_hand_arithmetic() -> None:
    """rewards (0, log 2, log 3), order 2, 0, 1: 3/6 then 1/3 then 1: -log(1/6) = 1.79175947."""
    r = f64([0.0, math.log(2), math.log(3)])
    loss = reward_loss("plackett_luce", r, order=[[2, 0, 1]])
    assert loss.item() == pytest.approx(math.log(6))
    best_first = reward_loss("plackett_luce", r.flip(1))  # 3/6 * 2/3 * 1
    assert best_first.item() == pytest.approx(math.log(3))


def test_plackett_luce_probabilities_sum_to_one_and_two_responses_are_bradley_terry() -> None:
    r = draw(1, 4)
    total = sum(
        math.exp(-reward_loss("plackett_luce", r, order=[list(p)]).item())
        for p in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0, rel=1e-13)
    pair = draw(5, 2)
    expected = reward_loss("bradley_terry", pair[:, 0], pair[:, 1])
    torch.testing.assert_close(reward_loss("plackett_luce", pair), expected, rtol=1e-13, atol=1e-14)
    assert reward_loss("plackett_luce", draw(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_gpm_hand_arithmetic() -> None:
    """v = (1, 2, 0, 1), w = (3, 1, 2, 2): planes 1*1 - 2*3 = -5 and 0*2 - 1*2 = -2: s = -7;
    gate (0.5, 1): -4.5; tau 2: log(1 + e^2.25) = 2.35022.
    """
    v, w = f64([1.0, 2.0, 0.0, 1.0]), f64([3.0, 1.0, 2.0, 2.0])
    assert gpm_score(v, w).item() == -7.0
    assert gpm_score(w, v).item() == 7.0
    assert gpm_score(v, v).item() == 0.0
    loss = reward_loss("gpm", v, w, gate=f64([0.5, 1.0]), tau=2.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(2.25)), rel=1e-14)
    assert reward_loss("gpm", v, v).item() == pytest.approx(LOG2)


def test_gpm_of_rewards_beside_one_is_bradley_terry_and_cycles_fit() -> None:
    r = draw(2, 5)
    ones = torch.ones(5, dtype=torch.float64)
    embeddings = [torch.stack([x, ones], 1) for x in r]
    expected = reward_loss("bradley_terry", r[0], r[1])
    gpm = reward_loss("gpm", *embeddings, tau=1.0)
    torch.testing.assert_close(gpm, expected, rtol=1e-13, atol=1e-14)
    turn = f64(0, 2 * math.pi / 3, 4 * math.pi / 3)
    v = torch.stack([turn.cos(), turn.sin()], 1)
    assert bool((gpm_score(v, v[[1, 2, 0]]) > 0.8).all())  # a > b > c > a


def test_mean_variance_hand_arithmetic() -> None:
    """means 1 and 0, variances 3 and 1: sqrt(2 pi) / 2 = 1.25331414: log(1 + e^-1.25331414)
    = 0.25131. A spread without end says nothing: log 2.
    """
    given = {"chosen_variances": 3.0, "rejected_variances": f64(1.0)}
    loss = reward_loss("mean_variance", f64(1.0), f64(0.0), **given)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.25331414)), rel=1e-8)
    given["chosen_variances"] = 1e30
    loss = reward_loss("mean_variance", f64(1.0), f64(0.0), **given)
    assert loss.item() == pytest.approx(LOG2, rel=1e-12)


def test_regression_hand_arithmetic() -> None:
    """(2 - 0.5)^2 = 2.25 with slope 3."""
    r = f64(2.0).requires_grad_()
    loss = reward_loss("regression", r, target=0.5)
    loss.sum().backward()
    assert (loss.item(), r.grad.item()) == (2.25, 3.0)


@each_case
def test_slopes_are_those_of_finite_differences(
    name: str, outputs: list[Tensor], given: dict[str, Any]
) -> None:
    leaves = [x.clone().requires_grad_() for x in outputs]
    reward_loss(name, *leaves, **given).sum().backward()
    step = 1e-6
    for which, leaf in enumerate(leaves):
        for i in range(leaf.numel()):
            ends = []
            for sign in (1, -1):
                moved = [x.clone() for x in outputs]
                moved[which].view(-1)[i] += sign * step
                ends.append(reward_loss(name, *moved, **given).sum().item())
            expected = (ends[0] - ends[1]) / (2 * step)
            assert leaf.grad.view(-1)[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@each_case
def test_float32_and_arrays_give_what_float64_gives(
    name: str, outputs: list[Tensor], given: dict[str, Any]
) -> None:
    narrow = reward_loss(name, *(x.float() for x in outputs), **given)
    exact = reward_loss(name, *(x.float().double() for x in outputs), **given)
    assert (narrow.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert exact.shape == (4,)
    torch.testing.assert_close(narrow.double(), exact, rtol=2e-6, atol=2e-6)
    arrays = reward_loss(name, *(np.asarray(x) for x in outputs), **given)
    assert torch.equal(arrays, reward_loss(name, *outputs, **given))


@each_case
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_of_1e4_stay_finite(
    name: str, outputs: list[Tensor], given: dict[str, Any], size: float, dtype: torch.dtype
) -> None:
    for which in range(len(outputs)):
        moved = [x.to(dtype, copy=True) for x in outputs]
        moved[which][..., :1] += size
        leaves = [x.requires_grad_() for x in moved]
        losses = reward_loss(name, *leaves, **given)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)


@each_case
def test_no_examples_give_no_losses(
    name: str, outputs: list[Tensor], given: dict[str, Any]
) -> None:
    none = {k: v[:0] if isinstance(v, Tensor) else v for k, v in given.items()}
    assert reward_loss(name, *(x[:0] for x in outputs), **none).shape == (0,)


TWO = torch.zeros(2)
REFUSALS = [
    (
        ("elo", TWO, TWO, {}),
        "name must be one of bradley_terry, gpm, mean_variance, plackett_luce, regression, soft_bt "
        "but is 'elo'",
    ),
    (
        ("bradley_terry", TWO, TWO, {"centre": 1}),
        "bradley_terry has no option 'centre'; it has label_smoothing, center",
    ),
    (("regression", TWO, None, {"x": 1}), "regression has no option 'x'; it has none"),
    (("bradley_terry", TWO, None, {}), "rejected_rewards must be given"),
    (("bradley_terry", TWO, torch.zeros(3), {}), "rejected_rewards must have shape (2,) but got"),
    (
        ("bradley_terry", torch.zeros(2, 1), TWO, {}),
        "chosen_rewards must be floating point of shape (B,) but is torch.float32 of shape (2, 1)",
    ),
    (("bradley_terry", TWO.int(), TWO, {}), "chosen_rewards must be floating point of shape (B,)"),
    (("bradley_terry", TWO, TWO, {"margin": torch.zeros(3)}), "margin must have shape (2,) but"),
    (("soft_bt", TWO, TWO, {}), "target must be given"),
    (("soft_bt", TWO, TWO, {"target": 1.5}), "target must be in [0, 1] everywhere"),
    (("regression", TWO, TWO, {"target": 1.5}), "regression takes no rejected_rewards"),
    (
        ("mean_variance", TWO, TWO, {"chosen_variances": 0.0, "rejected_variances": 1}),
        "chosen_variances must be > 0 everywhere",
    ),
    (
        ("plackett_luce", torch.zeros(1, 2), None, {"order": [[0, 0]]}),
        "order must hold each of 0 to 1 once in every row",
    ),
    (
        ("plackett_luce", torch.zeros(1, 2), None, {"order": [[0.0, 1.0]]}),
        "order must be integers of shape (1, 2) but is torch.float32 of shape (1, 2)",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_what_is_refused(call: tuple[str, Any, Any, dict[str, Any]], message: str) -> None:
    name, chosen, rejected, options = call
    with pytest.raises((ConfigError, ValueError)) as caught:
        reward_loss(name, chosen, rejected, **options)
    assert str(caught.value).startswith(f"[reward_loss] {message}")


def test_gpm_needs_pairs_of_coordinates() -> None:
    with pytest.raises(ValueError, match="embeddings must be of even size but are of 3"):
        gpm_score(torch.zeros(1, 3), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("name", "option", "rule"),
    [
        ("bradley_terry", "label_smoothing", "in [0, 0.5)"),
        ("bradley_terry", "center", ">= 0 and finite"),
        ("soft_bt", "center", ">= 0 and finite"),
        ("gpm", "tau", "> 0 and finite"),
    ],
)
def test_hyperparameters_are_refused(name: str, option: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reward_loss(name, TWO, TWO, **{option: -1.0})
    assert str(caught.value) == f"[{name}] {option} must be {rule} but is -1.0"


def test_ensembles_by_hand() -> None:
    """Rewards 1 and 3 of two models: mean 2, population variance 1."""
    r = f64([1.0], [3.0])
    assert ensemble_reward(r).tolist() == [2.0]
    assert ensemble_reward(r, "min").tolist() == [1.0]
    assert ensemble_reward(r, "uncertainty", 0.5).tolist() == [1.5]
    assert ensemble_reward(r[:1], "uncertainty").tolist() == [1.0]
    with pytest.raises(ValueError, match="how must be one of mean, min, uncertainty but is 'max'"):
        ensemble_reward(r, "max")
    with pytest.raises(ValueError, match=r"rewards must be \(M, ...\) but are \(0, 2\)"):
        ensemble_reward(torch.zeros(0, 2))
