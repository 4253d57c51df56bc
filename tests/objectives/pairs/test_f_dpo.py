"""f-DPO: by hand, against the divergences' own definitions, and in the limits of alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from objectives.by_hand import AT_REFERENCE, answer, close, f64, near, pairs

from pyengine.objectives import pairwise_loss


def test_reverse_kl_is_dpo():
    given = pairs()
    close(pairwise_loss("f_dpo", **given, beta=0.3), pairwise_loss("dpo", **given, beta=0.3))


def test_forward_kl_by_hand():
    """rho 2 and -1: -e^-2 + e^1 = 2.58294655; z = 0.5 * that = 1.29147327; loss 0.24284071;
    slopes -0.5 sigmoid(-z) times e^-2, and 0.5 sigmoid(-z) times e^1.
    """
    ours = answer("f_dpo", beta=0.5, divergence="forward_kl")
    assert ours.loss == near(0.24284071)
    assert ours.chosen == near(-0.01458938)
    assert ours.rejected == near(0.29303560)


def test_jensen_shannon_by_hand():
    """log sigmoid(2) - log sigmoid(-1) = -0.12692801 + 1.31326169 = 1.18633368; z = 0.59316684;
    loss 0.43991458.
    """
    ours = answer("f_dpo", beta=0.5, divergence="js")
    assert ours.loss == near(0.43991458)
    assert ours.chosen == near(-0.02121267)
    assert ours.rejected == near(0.13009500)


def test_alpha_by_hand():
    """alpha 1/2: 2 (1 - e^-1) - 2 (1 - e^0.5) = 2.56168366; z = 1.28084183; loss 0.24514246."""
    ours = answer("f_dpo", beta=0.5, divergence="alpha", alpha=0.5)
    assert ours.loss == near(0.24514246)
    assert ours.chosen == near(-0.03998978)
    assert ours.rejected == near(0.17922174)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha"])
def test_at_the_reference_it_is_dpo(divergence):
    """Every f has f''(1) = 1 here but that of js, which has 1/2: log 2, slope -beta f''(1) / 2."""
    ours = answer("f_dpo", AT_REFERENCE, beta=0.5, divergence=divergence)
    assert ours.loss == near(math.log(2))
    assert ours.chosen == near(-0.125 if divergence == "js" else -0.25)


def alpha_divergence(alpha: float) -> Callable[[float], float]:
    return lambda t: (t ** (1 - alpha) - (1 - alpha) * t - alpha) / (alpha * (alpha - 1))


DEFINITIONS = {
    "reverse_kl": lambda t: t * math.log(t),
    "forward_kl": lambda t: -math.log(t),
    "js": lambda t: t * math.log(t) - (t + 1) * math.log((t + 1) / 2),
    "alpha": alpha_divergence(0.3),
}


@pytest.mark.parametrize("divergence", DEFINITIONS)
def test_slopes_are_those_of_the_divergence(divergence):
    """f' by central differences of f as it is defined, at the ratios e^0.7 and e^-0.4."""
    f, step = DEFINITIONS[divergence], 1e-6

    def slope(rho: float) -> float:
        t = math.exp(rho)
        return (f(t + step) - f(t - step)) / (2 * step)

    zero = f64(0.0)
    options = {"alpha": 0.3} if divergence == "alpha" else {}
    loss = pairwise_loss(
        "f_dpo", f64(0.7), f64(-0.4), zero, zero, beta=0.5, divergence=divergence, **options
    )
    z = 0.5 * (slope(0.7) - slope(-0.4))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-z)), rel=1e-8)


@pytest.mark.parametrize(("alpha", "limit"), [(1e-9, "reverse_kl"), (1 - 1e-9, "forward_kl")])
def test_alpha_lies_between_the_two_directions(alpha, limit):
    given = pairs(1, spread=0.5)
    ours = pairwise_loss("f_dpo", **given, divergence="alpha", alpha=alpha)
    expected = pairwise_loss("f_dpo", **given, divergence=limit)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_exponents_end_at_80_in_float32(divergence):
    """rho = -200: e^200 is beyond float32; the loss is that of e^80 and has no slope in rho."""
    chosen = torch.tensor([-200.0], requires_grad=True)
    zero = torch.zeros(1)
    loss = pairwise_loss("f_dpo", chosen, zero, zero, zero, divergence=divergence, alpha=0.5)
    loss.sum().backward()
    expected = 0.1 * math.exp(80) / (1.0 if divergence == "forward_kl" else 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert chosen.grad.item() == 0.0
