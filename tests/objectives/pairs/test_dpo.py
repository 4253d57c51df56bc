"""DPO against hand arithmetic, its limits, the published formulas and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from pyengine.errors import ConfigError
from pyengine.objectives import DPO, Examples, pairwise_loss

LOG2 = math.log(2.0)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def four(seed: int = 0, count: int = 6) -> list[torch.Tensor]:
    """Summed log-probs of a real run's size: chosen, rejected, and their references."""
    generator = torch.Generator().manual_seed(seed)
    base = -torch.rand(4, count, generator=generator, dtype=torch.float64) * 200 - 5
    base[2:] = base[:2] + torch.randn(2, count, generator=generator, dtype=torch.float64) * 3
    return list(base)


def examples(*logps: torch.Tensor) -> Examples:
    """Chosen, rejected, and their references; every chosen wins."""
    names = ("chosen", "rejected")
    policy, reference = (dict(zip(names, pair, strict=True)) for pair in (logps[:2], logps[2:]))
    return Examples(policy, reference, {"target": 1.0, "margin": 0.0})


def test_hand_arithmetic():
    """beta 0.5, chosen -10 (reference -12), rejected -11 (reference -10).

    log-ratios        chosen -10 + 12 = 2, rejected -11 + 10 = -1
    z                 0.5 * (2 - (-1)) = 1.5
    loss              -log sigmoid(1.5) = log(1 + e^-1.5) = log(1.22313016) = 0.20141328
    rewards           chosen 0.5 * 2 = 1, rejected 0.5 * -1 = -0.5, margin 1.5
    d loss / d chosen -0.5 * sigmoid(-1.5) = -0.5 * 0.18242552 = -0.09121276
    """
    chosen, rejected = f64(-10.0).requires_grad_(), f64(-11.0).requires_grad_()
    x = examples(chosen, rejected, f64(-12.0), f64(-10.0))
    losses, metrics = DPO(beta=0.5).losses(x), DPO(beta=0.5).metrics(x)
    losses.sum().backward()
    assert losses.item() == pytest.approx(0.20141328, abs=5e-9)
    assert chosen.grad.item() == pytest.approx(-0.09121276, abs=5e-9)
    assert rejected.grad.item() == pytest.approx(0.09121276, abs=5e-9)
    assert {name: value.item() for name, value in metrics.items()} == {
        "rewards/chosen": 1.0,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.5,
        "rewards/accuracies": 1.0,
        "logps/chosen": -10.0,
        "logps/rejected": -11.0,
    }


def test_at_policy_equal_to_reference_loss_is_log_2_and_gradient_half_beta():
    chosen, rejected = f64(-33.25).requires_grad_(), f64(-7.5).requires_grad_()
    x = examples(chosen, rejected, f64(-33.25), f64(-7.5))
    losses, metrics = DPO(beta=0.3).losses(x), DPO(beta=0.3).metrics(x)
    losses.sum().backward()
    assert losses.item() == pytest.approx(LOG2, rel=1e-15)
    assert chosen.grad.item() == pytest.approx(-0.15, rel=1e-15)
    assert rejected.grad.item() == pytest.approx(0.15, rel=1e-15)
    assert metrics["rewards/margins"].item() == 0.0
    assert metrics["rewards/accuracies"].item() == 0.0  # a tie is not a win


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.5])
def test_equals_the_formula_as_others_write_it(beta):
    """TRL: -logsigmoid(beta * ((chosen - rejected) - (ref_chosen - ref_rejected)))."""
    chosen, rejected, ref_chosen, ref_rejected = four()
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    theirs = -torch.nn.functional.logsigmoid(beta * logits)
    ours = pairwise_loss("dpo", chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.49])
def test_smoothing_equals_cdpo(smoothing):
    """TRL: -logsigmoid(beta h) (1 - e) - logsigmoid(-beta h) e."""
    chosen, rejected, ref_chosen, ref_rejected = four(1)
    z = 0.2 * ((chosen - rejected) - (ref_chosen - ref_rejected))
    log_sigmoid = torch.nn.functional.logsigmoid
    theirs = -log_sigmoid(z) * (1 - smoothing) - log_sigmoid(-z) * smoothing
    ours = pairwise_loss(
        "dpo", chosen, rejected, ref_chosen, ref_rejected, beta=0.2, label_smoothing=smoothing
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_probability_is_the_target_of_a_cross_entropy():
    """With P(chosen wins) = p the loss is the cross entropy of (p, 1 - p) and sigmoid(z)."""
    chosen, rejected, ref_chosen, ref_rejected = four(2)
    p = torch.linspace(0, 1, 6, dtype=torch.float64)
    losses = pairwise_loss("dpo", chosen, rejected, ref_chosen, ref_rejected, target=p)
    win = torch.sigmoid(0.1 * ((chosen - ref_chosen) - (rejected - ref_rejected)))
    expected = -p * win.log() - (1 - p) * (1 - win).log()
    torch.testing.assert_close(losses, expected, rtol=1e-11, atol=1e-12)


def test_probability_and_smoothing_together():
    """p 0.8, e 0.1: the target is 0.8 * 0.9 + 0.2 * 0.1 = 0.74; at z = 0 the gradient on the
    chosen log-prob is beta (sigmoid(0) - 0.74) = -0.24 beta.
    """
    chosen = f64(-4.0).requires_grad_()
    given = chosen, f64(-6.0), f64(-4.0), f64(-6.0)
    losses = pairwise_loss("dpo", *given, target=0.8, beta=0.5, label_smoothing=0.1)
    losses.sum().backward()
    assert losses.item() == pytest.approx(LOG2, rel=1e-14)
    assert chosen.grad.item() == pytest.approx(-0.12, rel=1e-13)


def test_swapping_the_pair_is_the_complementary_probability():
    chosen, rejected, ref_chosen, ref_rejected = four(3)
    one = pairwise_loss("dpo", chosen, rejected, ref_chosen, ref_rejected, target=0.7)
    other = pairwise_loss("dpo", rejected, chosen, ref_rejected, ref_chosen, target=1 - 0.7)
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"beta": 0.7}, {"label_smoothing": 0.2}])
def test_gradient_equals_finite_differences(options):
    inputs = [x.clone().requires_grad_() for x in four(4)]
    pairwise_loss("dpo", *inputs, **options).sum().backward()
    step = 1e-5
    for which in (0, 1):
        for i in range(6):
            moved = [x.detach().clone() for x in inputs]
            moved[which][i] += step
            up = pairwise_loss("dpo", *moved, **options)[i]
            moved[which][i] -= 2 * step
            down = pairwise_loss("dpo", *moved, **options)[i]
            slope = (up - down).item() / (2 * step)
            assert inputs[which].grad[i].item() == pytest.approx(slope, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_in_is_dtype_out(dtype):
    losses = pairwise_loss("dpo", *(x.to(dtype) for x in four()))
    assert losses.dtype == dtype
    assert losses.shape == (6,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [-1e4, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_log_ratios_stay_finite(dtype, ratio, smoothing):
    """beta 1, z = ratio: -(1 - e) log sigmoid(z) - e log sigmoid(-z), where log sigmoid(z) is 0 or
    z itself in floating point.
    """
    chosen = torch.tensor([ratio], dtype=dtype, requires_grad=True)
    zero = torch.zeros(1, dtype=dtype)
    loss = pairwise_loss("dpo", chosen, zero, zero, zero, beta=1.0, label_smoothing=smoothing)
    loss.sum().backward()
    wrong_way = 1 - smoothing if ratio < 0 else smoothing
    assert loss.item() == pytest.approx(wrong_way * 1e4, rel=1e-6)
    # sigmoid(z) is 1 or 0 here, so the gradient is beta (sigmoid(z) - (1 - e)).
    saturated = (1.0 if ratio > 0 else 0.0) - (1 - smoothing)
    assert chosen.grad.item() == pytest.approx(saturated, abs=1e-6)


@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_beta_is_refused(beta):
    with pytest.raises(ConfigError) as caught:
        DPO(beta=beta)
    assert str(caught.value) == f"[dpo] beta must be > 0 and finite but is {beta}"


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, math.nan])
def test_label_smoothing_is_refused(smoothing):
    with pytest.raises(ConfigError) as caught:
        DPO(label_smoothing=smoothing)
    assert str(caught.value) == f"[dpo] label_smoothing must be in [0, 0.5) but is {smoothing}"
