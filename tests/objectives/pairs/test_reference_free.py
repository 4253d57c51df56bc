"""Objectives without a reference, or over lengths or ranks: SLiC, SimPO, AlphaPO, CPO, ORPO,
DPO of averages, AOT. Hand arithmetic and limits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from objectives.core.test_base import inputs as soft_inputs
from torch import Tensor

from pyengine.errors import RequestError
from pyengine.objectives import AOT, CPO, NLL, ORPO, LossInputs, SimPO, get, pairwise_loss

LOG2 = math.log(2)
LENGTHS = {"chosen_lengths": [4.0], "rejected_lengths": [5.0]}


def inputs() -> LossInputs:
    """A batch of hard labels."""
    x = soft_inputs()
    return dataclasses.replace(x, probability=torch.ones_like(x.probability))


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def one(name: str, chosen: float, rejected: float, **options: Any) -> tuple[float, ...]:
    """Loss and its slopes in both log-probs, of one pair."""
    leaves = f64(chosen), f64(rejected)
    loss = pairwise_loss(name, *leaves, **options)
    slopes = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    return loss.item(), *(0.0 if s is None else s.item() for s in slopes)


def test_slic() -> None:
    """delta 2, lam 0.5, log-probs -4 and -5, regulariser -6: max(0, 2 + 4 - 5) + 3 = 4."""
    reg = f64(-6.0)
    assert one("slic", -4.0, -5.0, delta=2.0, lam=0.5, reg_logps=reg) == (4.0, -1.0, 1.0)
    loss = pairwise_loss("slic", f64(-4.0), f64(-5.0), reg_logps=reg, lam=0.5)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert reg.grad is not None
    assert reg.grad.item() == -0.5


def test_slic_beyond_its_margin_is_the_regulariser() -> None:
    assert one("slic", -4.0, -5.5, lam=0.5, reg_logps=[-6.0]) == (3.0, 0.0, 0.0)


def test_slic_update_takes_the_auxiliary_response() -> None:
    x = inputs()
    with pytest.raises(RequestError, match=r"needs the reg response of every comparison"):
        get("slic")(x)
    output = get("slic", lam=0.5)(dataclasses.replace(x, auxiliary=torch.tensor([2, 2, 2])))
    hinge = get("slic", lam=0.0)(dataclasses.replace(x, auxiliary=torch.tensor([2, 2, 2])))
    extra = torch.zeros(10, dtype=torch.float64)
    extra[4:6] = -0.5  # response 2; the weights sum to their total
    torch.testing.assert_close(output.dlogps, hinge.dlogps + extra, rtol=1e-14, atol=1e-15)


def test_simpo() -> None:
    """Averages -8 / 4 = -2 and -15 / 5 = -3; beta 2, gamma 1.5: z = 2 - 1.5 = 0.5, loss 0.47407698;
    slopes -2/4 s(-0.5) = -0.18877033 and 2/5 s(-0.5) = 0.15101627.
    """
    expected = (0.47407698, -0.18877033, 0.15101627)
    found = one("simpo", -8.0, -15.0, beta=2.0, gamma=1.5, **LENGTHS)
    assert found == pytest.approx(expected, abs=5e-9)


def test_simpo_without_margin_at_equal_averages_is_log_2() -> None:
    assert one("simpo", -8.0, -10.0, gamma=0.0, **LENGTHS)[0] == pytest.approx(LOG2, rel=1e-15)


def test_simpo_needs_lengths() -> None:
    with pytest.raises(ValueError, match="chosen_lengths must be given to average over tokens"):
        one("simpo", -8.0, -10.0)


@pytest.mark.parametrize("name", ["simpo", "alphapo", "orpo", "cpo", "sigmoid_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_response_of_no_tokens_counts_as_one_of_a_token(name: str, dtype: torch.dtype) -> None:
    zeros = torch.zeros(1, dtype=dtype)
    losses = [
        pairwise_loss(name, zeros, zeros - 3, zeros, zeros, chosen_lengths=[n], rejected_lengths=m)
        if name != "cpo"
        else pairwise_loss(name, zeros, zeros - 3, chosen_lengths=[n])
        for n, m in ((0.0, [4.0]), (1.0, [4.0]))
    ]
    assert losses[0].isfinite()
    assert losses[0].item() == losses[1].item()


def test_averages_are_the_rewards_of_the_metrics() -> None:
    """Lengths 3, 1, 2, 4; comparisons (0, 1), (0, 3), (2, 3)."""
    x = inputs()
    logps = x.sequence_logps(x.policy_token_logps)
    metrics = SimPO(beta=2.0)(x).metrics
    expected = 2 * logps[[0, 0, 2]] / torch.tensor([3, 3, 2])
    torch.testing.assert_close(metrics["rewards/chosen"], expected)
    expected = 0.1 * logps[[1, 3, 3]] / torch.tensor([1, 4, 4])
    torch.testing.assert_close(ORPO()(x).metrics["rewards/rejected"], expected)


def test_alphapo() -> None:
    """Averages -2 and -3, alpha 0.5: r = (1 - e^1) / 0.5 = -3.43656366 and (1 - e^1.5) / 0.5 =
    -6.96337814; beta 0.2, gamma 0.3: z = 0.2 * 3.52681448 - 0.3 = 0.40536290, loss 0.51086651;
    slope of chosen -0.2 s(-z) e^1 / 4 = -0.2 * 0.40002453 * 0.67957046 = -0.05436897.
    """
    options = {"alpha": 0.5, "beta": 0.2, "gamma": 0.3}
    loss, chosen, _ = one("alphapo", -8.0, -15.0, **options, **LENGTHS)
    z = 0.2 * 2 * (math.exp(1.5) - math.exp(1)) - 0.3
    assert z == pytest.approx(0.40536290, abs=1e-8)
    assert loss == pytest.approx(0.51086651, abs=1e-8)
    assert chosen == pytest.approx(-0.05436897, abs=1e-8)


def test_alphapo_of_small_alpha_is_simpo() -> None:
    simpo = one("simpo", -8.0, -15.0, **LENGTHS)
    assert one("alphapo", -8.0, -15.0, alpha=0.0, **LENGTHS) == pytest.approx(simpo, rel=1e-14)
    assert one("alphapo", -8.0, -15.0, alpha=1e-7, **LENGTHS) == pytest.approx(simpo, rel=1e-6)


def test_cpo() -> None:
    """beta 0.5, log-probs -8 and -9 of 4 chosen tokens, alpha 0.25: z = 0.5, loss 0.47407698 +
    0.25 * 8 / 4 = 0.97407698; slopes -0.5 s(-0.5) - 0.25 / 4 = -0.25127033 and 0.18877033.
    """
    options = {"beta": 0.5, "alpha": 0.25, "chosen_lengths": [4.0]}
    expected = (0.97407698, -0.25127033, 0.18877033)
    assert one("cpo", -8.0, -9.0, **options) == pytest.approx(expected, abs=5e-9)


def test_cpo_averages() -> None:
    """Log-probs -8 of 4 tokens and -3 of 2: NLL by example (2 + 1.5) / 2, by token 11 / 6, summed
    11 / 2. Rejected responses tie with them, so that the other part is log 2.
    """
    logps = torch.tensor([-8.0, -3.0], dtype=torch.float64)
    means = {"example": 1.75, "batch": 11 / 6, "sum": 5.5}
    for average, expected in means.items():
        options = {"nll_average": average, "chosen_lengths": [4.0, 2.0]}
        loss = pairwise_loss("cpo", logps, logps, **options).mean()
        assert loss.item() == pytest.approx(expected + LOG2, rel=1e-14), average


def test_cpo_without_reference_and_nll_is_dpo() -> None:
    zeros = torch.zeros(1, dtype=torch.float64)
    dpo = pairwise_loss("dpo", f64(-8.0), f64(-9.0), zeros, zeros).item()
    assert one("cpo", -8.0, -9.0, alpha=0.0)[0] == dpo


def test_only_averages_over_the_batch_need_the_batch() -> None:
    for cls in (CPO, ORPO):
        assert [cls(nll_average=a).batch_global for a in ("sum", "example", "batch")] == [
            False,
            False,
            True,
        ]
    assert [NLL(average=a).batch_global for a in ("sum", "batch")] == [False, True]


def test_orpo() -> None:
    """p = 1/2 a token of 4, 1/4 a token of 5: odds 1 and 1/3, log-odds ratio log 3;
    lam 0.5: log 2 - 0.5 log(3/4) = 0.69314718 + 0.14384104 = 0.83698822.
    """
    found = one("orpo", -4 * LOG2, -10 * LOG2, lam=0.5, **LENGTHS)[0]
    assert found == pytest.approx(0.83698822, abs=5e-9)


def test_orpo_at_equal_odds_and_at_certainty() -> None:
    found = one("orpo", -8.0, -10.0, lam=0.3, **LENGTHS)[0]
    assert found == pytest.approx(2 + 0.3 * LOG2, rel=1e-14)
    assert all(map(math.isfinite, one("orpo", 0.0, -1e-12, **LENGTHS)))


def test_sigmoid_norm() -> None:
    """Log-ratios 2 over 4 tokens and -5 over 5, beta 1/3: z = (0.5 + 1) / 3 = 0.5."""
    found = one("sigmoid_norm", -8.0, -15.0, beta=1 / 3, ref_chosen_logps=[-10.0],
                ref_rejected_logps=[-10.0], **LENGTHS)  # fmt: skip
    assert found == pytest.approx((0.47407698, -0.37754067 / 12, 0.37754067 / 15), abs=5e-9)


def test_sigmoid_norm_of_one_token_is_dpo() -> None:
    options = {"ref_chosen_logps": [-2.0], "ref_rejected_logps": [-1.0]}
    ones = {"chosen_lengths": [1.0], "rejected_lengths": [1.0]}
    assert one("sigmoid_norm", -1.0, -4.0, **options, **ones) == one("dpo", -1.0, -4.0, **options)


def test_aot() -> None:
    """beta 1. Margins (3, -1), those of the reference (0, 2): sorted (-1, 3) and (0, 2), so that
    d = (-1, 1) and the losses are (1.31326169, 0.31326169). The slope of loss 0 is on comparison 1.
    """
    chosen, rejected = f64(-1.0, -5.0), torch.tensor([-4.0, -4.0])
    loss = pairwise_loss("aot", chosen, rejected, [-2.0, -3.0], [-2.0, -5.0], beta=1.0)
    assert loss.tolist() == pytest.approx([1.31326169, 0.31326169], abs=5e-9)
    (slope,) = torch.autograd.grad(loss[0], chosen)
    assert slope.tolist() == pytest.approx([0, -0.73105858], abs=5e-9)


def test_aot_unpaired() -> None:
    """beta 1. Log-ratios of the chosen (1, -2), of the rejected (-1.5, -3): sorted (-2, 1) and
    (-3, -1.5), d = (1, 2.5): losses 0.31326169 and 0.07888973.
    """
    zeros = torch.zeros(2, dtype=torch.float64)
    loss = pairwise_loss("aot", f64(1.0, -2.0), [-1.5, -3.0], zeros, zeros, beta=1.0, paired=False)
    assert loss.tolist() == pytest.approx([0.31326169, 0.07888973], abs=5e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_aot_of_one_comparison_is_dpo(paired: bool) -> None:
    options = {"ref_chosen_logps": [-2.0], "ref_rejected_logps": [-1.0]}
    assert one("aot", -1.0, -4.0, paired=paired, **options) == one("dpo", -1.0, -4.0, **options)


def test_aot_at_the_reference_is_log_2() -> None:
    logps = -torch.rand(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = pairwise_loss("aot", *logps, *logps)
    torch.testing.assert_close(loss, torch.full_like(loss, LOG2))


def test_aot_refuses_comparisons_of_unlike_weight() -> None:
    x = inputs()
    with pytest.raises(RequestError, match="comparisons of a batch must have one weight"):
        AOT()(x)
    assert AOT()(dataclasses.replace(x, weight=torch.ones(3), total_weight=3.0)).loss.isfinite()
