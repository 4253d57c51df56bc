"""Objectives of single responses: BCO, NPO, ULMA, pointwise DPO, DRO, PMPO, NLL. Hand arithmetic
and limits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from objectives.core.test_base import inputs
from torch import Tensor

from pyengine.objectives import BCO, PMPO, LossInputs, pairwise_loss, pointwise_loss
from pyengine.objectives.labelled.bco import bco_shift, udm_weight

LOG2 = math.log(2)


def one(name: str, logps: float, ref: float = 0.0, **options: Any) -> tuple[float, float]:
    """Loss and its slope in the log-prob, of one response."""
    leaf = torch.tensor([logps], dtype=torch.float64, requires_grad=True)
    loss = pointwise_loss(name, leaf, [ref], **options)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return loss.item(), leaf.grad.item()


def responses(**columns: list[float]) -> LossInputs:
    """The four of test_base as an update of single responses has them."""
    tensors = {name: torch.tensor(c, dtype=torch.float64) for name, c in columns.items()}
    ones = torch.ones(4, dtype=torch.float64)
    return dataclasses.replace(inputs(), columns=tensors, weight=ones, total_weight=4.0)


def test_bco() -> None:
    """beta 0.5, log-ratios 4 (desirable) and -2 (not): r = 2 and -1, delta = (2 - 1) / 2 = 0.5;
    -log s(1.5) = 0.20141328 and, weight 3, 3 * 0.201413278 = 0.60423983.
    """
    options = {"labels": [1.0, 0.0], "weight": [9.0, 3.0], "beta": 0.5}
    logps = torch.tensor([-6.0, -7.0], dtype=torch.float64, requires_grad=True)
    loss = pointwise_loss("bco", logps, [-10.0, -5.0], **options)
    assert loss.tolist() == pytest.approx([0.20141328, 0.60423983], abs=5e-9)
    (slopes,) = torch.autograd.grad(loss.sum(), logps)
    # 0.5 s(-1.5): the shift has no gradient
    assert slopes.tolist() == pytest.approx([-0.09121276, 3 * 0.09121276], abs=5e-8)
    given = pointwise_loss("bco", logps, [-10.0, -5.0], delta=0.5, **options)
    assert given.tolist() == loss.tolist()


def test_bco_at_the_reference_is_log_2() -> None:
    assert one("bco", -3.0, -3.0, labels=[0.0])[0] == pytest.approx(LOG2, rel=1e-15)


def test_bco_with_one_class_takes_its_mean() -> None:
    rewards = torch.tensor([1.0, 4.0])
    assert bco_shift(rewards, torch.tensor([1.0, 1.0])).item() == 2.5
    assert bco_shift(rewards, torch.tensor([0.0, 0.0])).item() == 2.5
    assert bco_shift(rewards, torch.tensor([0.0, 1.0])).item() == 2.5
    assert bco_shift(torch.tensor([1.0, 4.0, 6.0]), torch.tensor([0.0, 1.0, 0.0])).item() == 3.75


def test_bco_shift_of_the_batch_needs_the_batch() -> None:
    assert BCO().batch_global
    assert not BCO(delta=0.0).batch_global


def test_udm_weight() -> None:
    """p / (1 - p): 1 at 1/2, 3 at 3/4, held in [0.5, 10]."""
    found = udm_weight(torch.tensor([0.5, 0.75, 0.01, 0.99, 1.0]))
    assert found.tolist() == pytest.approx([1, 3, 0.5, 10, 10])


def test_npo() -> None:
    """beta 0.5, log-ratio 2: 4 log(1 + e) = 4 * 1.31326169 = 5.25304675, slope 2 s(1)."""
    assert one("npo", -8.0, -10.0, beta=0.5) == pytest.approx((5.25304675, 1.46211716), abs=5e-9)
    assert one("npo", -8.0, -8.0) == pytest.approx((20 * LOG2, 1.0), rel=1e-14)


def test_npo_of_small_beta_is_gradient_ascent() -> None:
    """(2 / beta) log 2 + rho + O(beta): the slope is 1 wherever the response is."""
    low, high = one("npo", -9.0, beta=1e-6), one("npo", -2.0, beta=1e-6)
    assert high[0] - low[0] == pytest.approx(7, rel=1e-5)
    assert (low[1], high[1]) == pytest.approx((1, 1), rel=1e-5)


def test_npo_with_what_is_to_be_kept() -> None:
    """Label 0 is npo's; label 1 costs retain NLL: 8 tokens' log-prob of -4 is 0.5 a token."""
    forgotten = one("npo_retain", -8.0, -10.0, labels=[0.0], lengths=[8.0], beta=0.5)
    assert forgotten == pytest.approx(one("npo", -8.0, -10.0, beta=0.5), rel=1e-15)
    kept = one("npo_retain", -4.0, -10.0, labels=[1.0], lengths=[8.0], retain=2.0)
    assert kept == pytest.approx((2 * 0.5, 2 * -1 / 8), rel=1e-15)
    assert one("npo_retain", -4.0, -10.0, labels=[1.0], average="sum") == pytest.approx((4.0, -1.0))


def test_ulma() -> None:
    """A good response of log-prob -8 costs 8; a bad one with beta rho = 1, 1.31326169."""
    assert one("ulma", -8.0, -3.0, labels=[1.0]) == (8.0, -1.0)
    found = one("ulma", -8.0, -10.0, labels=[0.0], beta=0.5)
    assert found == pytest.approx((1.31326169, 0.5 * 0.73105858), abs=5e-9)
    assert one("ulma", -8.0, -8.0, labels=[0.0])[0] == pytest.approx(LOG2, rel=1e-15)


def test_pointwise_dpo() -> None:
    """z 0.75, beta rho = 1: 0.75 * 0.31326169 + 0.25 * 1.31326169 = 0.56326169;
    slope 0.5 (s(1) - 0.75) = -0.00947071.
    """
    found = one("pointwise_dpo", -8.0, -10.0, labels=[0.75], beta=0.5)
    assert found == pytest.approx((0.56326169, -0.00947071), abs=5e-9)
    start = one("pointwise_dpo", -8.0, -8.0, labels=[0.2])
    assert start == pytest.approx((LOG2, 0.1 * 0.3), rel=1e-14)


def test_pointwise_dpo_of_hard_labels_is_bco_without_a_shift() -> None:
    for label in (0.0, 1.0):
        bco = one("bco", -8.0, -10.0, labels=[label], delta=0.0)
        assert one("pointwise_dpo", -8.0, -10.0, labels=[label]) == pytest.approx(bco, rel=1e-15)


def test_dro() -> None:
    """r 3, V 1, tau 0.5, log-ratio 2: (2 - 1)^2 / 2 = 0.5, slope -0.5 (2 - 1) = -0.5; divided by
    tau, 1 and -1: the paper's -(r - V) + tau rho.
    """
    options: dict[str, Any] = {"rewards": [3.0], "values": [1.0], "tau": 0.5}
    assert one("dro", -8.0, -10.0, **options) == (0.5, -0.5)
    assert one("dro", -8.0, -10.0, rescale=True, **options) == (1.0, -1.0)
    assert one("dro", -8.0, -8.0, **options)[0] == 2.0
    assert one("dro", -6.0, -10.0, **options) == (0.0, 0.0)  # rho = (r - V) / tau


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dro_is_the_value_networks_loss_too(dtype: torch.dtype) -> None:
    """d loss / d V = -(r - V - tau rho) = -(3 - 1 - 0.5 * 2)."""
    values = torch.tensor([1.0], dtype=dtype, requires_grad=True)
    logps = torch.tensor([-8.0], dtype=dtype)
    loss = pointwise_loss("dro", logps, [-10.0], rewards=[3.0], values=values, tau=0.5)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.item() == -1.0


def pmpo(labels: list[float], **options: Any) -> tuple[float, list[float]]:
    logps = torch.tensor([-2.0, -4.0, -9.0], dtype=torch.float64, requires_grad=True)
    loss = pointwise_loss("pmpo", logps, labels=labels, kl=[1.0, 2.0, 6.0], **options)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.shape == ()
    assert logps.grad is not None
    return loss.item(), logps.grad.tolist()


def test_pmpo() -> None:
    """Accepted -2 and -4, mean -3, rejected -9; alpha 0.75, beta 0.5, mean KL 3:
    0.75 * 3 + 0.25 * -9 + 0.5 * 3 = 1.5; slopes -0.75 / 2 twice and 0.25.
    """
    loss, slopes = pmpo([1.0, 1.0, 0.0], alpha=0.75, beta=0.5)
    assert loss == pytest.approx(1.5, rel=1e-14)
    assert slopes == pytest.approx([-0.375, -0.375, 0.25], rel=1e-14)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "js", "tv"])
def test_fdpg_over_all_responses_is_the_divergences_gradient(divergence: str) -> None:
    """Five responses, each as often as the sampler draws it; a baseline changes nothing then."""
    generator = torch.Generator().manual_seed(3)
    logits, p, q = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
    p, q = p.log_softmax(0), q.log_softmax(0)
    leaf = logits.requires_grad_()
    logps = leaf.log_softmax(0)
    t = (logps - p).exp()
    middle = torch.log((1 + t) / 2)
    f = {
        "forward_kl": -t.log(),
        "reverse_kl": t * t.log(),
        "js": t * t.log() - (1 + t) * middle,
        "tv": (t - 1).abs() / 2,
    }[divergence]
    (expected,) = torch.autograd.grad((p.exp() * f).sum(), leaf, retain_graph=True)
    for baseline in (0.0, 0.7):
        losses = pointwise_loss(
            "fdpg", logps, target_logps=p, sampler_logps=q, divergence=divergence, baseline=baseline
        )
        (slopes,) = torch.autograd.grad((q.exp() * losses).sum(), leaf, retain_graph=True)
        torch.testing.assert_close(slopes, expected, rtol=1e-10, atol=1e-14)


def test_gpo() -> None:
    """rho 2, score 0.3, beta 0.1: (2 - 3)^2, slope -2. At the reference (s / beta)^2."""
    assert one("gpo", -3.0, -5.0, beta=0.1, scores=0.3) == pytest.approx((1.0, -2.0), rel=1e-12)
    assert one("gpo", -3.0, -3.0, beta=0.1, scores=0.3)[0] == pytest.approx(9.0, rel=1e-12)


def test_gpo_is_sppos_half_without_its_one_half() -> None:
    """Win rates P and scores P - 1/2 have the same aims; SPPO is half the sum of the two."""
    pair = torch.tensor([-3.0]), torch.tensor([-4.0]), torch.tensor([-2.0]), torch.tensor([-6.0])
    rates = {"chosen_win_rate": 0.9, "rejected_win_rate": 0.2}
    both = pairwise_loss("sppo", *pair, beta=0.5, **rates).item()
    each = [
        one("gpo", -3.0, -2.0, beta=0.5, scores=0.4)[0],
        one("gpo", -4.0, -6.0, beta=0.5, scores=-0.3)[0],
    ]
    assert both == pytest.approx(sum(each) / 2, rel=1e-6)


def test_superhf() -> None:
    """Two tokens of log-prob -3, KL 0.5, beta 0.4: 1.5 + 0.1; a KL below 0 counts as none."""
    given: dict[str, Any] = {"lengths": 2.0, "beta": 0.4}
    logps = torch.tensor([-3.0], dtype=torch.float64)
    assert pointwise_loss("superhf", logps, kl=0.5, **given).item() == pytest.approx(1.6)
    assert pointwise_loss("superhf", logps, kl=-0.1, **given).item() == pytest.approx(1.5)
    assert pointwise_loss("superhf", logps, kl=0.5, weight=0.0, **given).item() == (
        pytest.approx(0.1)
    )


def test_pmpo_of_accepted_responses_only_is_nll() -> None:
    loss, slopes = pmpo([1.0, 1.0, 1.0], alpha=1.0, beta=0.0)
    assert loss == pytest.approx(5.0, rel=1e-14)
    assert slopes == pytest.approx([-1 / 3] * 3, rel=1e-14)
    assert pmpo([1.0, 1.0, 1.0], alpha=0.0, beta=0.0)[0] == 0.0  # nothing is rejected


def test_pmpo_update_is_the_plain_function() -> None:
    labels, kl = [1.0, 0.0, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4]
    x = responses(labels=labels)
    of_tokens = (torch.tensor(kl, dtype=torch.float64) / x.lengths).repeat_interleave(x.lengths)
    logps = x.sequence_logps(x.policy_token_logps)
    expected = pointwise_loss("pmpo", logps, labels=labels, kl=kl)
    output = PMPO()(dataclasses.replace(x, side={"kl": of_tokens}))
    assert output.dside.keys() == {"kl"}
    dkl = output.dside["kl"]
    torch.testing.assert_close(dkl, torch.full_like(dkl, 0.5 / 4))  # beta / 4
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-14)
    assert output.dlogps[3].item() == pytest.approx(0.25, rel=1e-14)  # response 1, of two rejected


def nll_of(average: str) -> Tensor:
    weight, lengths = [1.0, 0.5], [4.0, 2.0]
    return pointwise_loss(
        "nll", torch.tensor([-8.0, -3.0]), weight=weight, lengths=lengths, average=average
    )


def test_nll() -> None:
    """Log-probs -8 of 4 tokens, weight 1, and -3 of 2, weight 1/2: sums 8 and 1.5, by example 2 and
    0.75, by token of the batch (3 a response) 8/3 and 0.5.
    """
    assert nll_of("sum").tolist() == [8.0, 1.5]
    assert nll_of("example").tolist() == [2.0, 0.75]
    assert nll_of("batch").tolist() == pytest.approx([8 / 3, 0.5], rel=1e-6)


def test_nll_over_the_batch_is_the_mean_over_its_tokens() -> None:
    logps = torch.tensor([-8.0, -3.0], dtype=torch.float64)
    loss = pointwise_loss("nll", logps, lengths=[4.0, 2.0], average="batch").mean()
    assert loss.item() == pytest.approx(11 / 6, rel=1e-15)


def test_weight_0_leaves_a_response_out() -> None:
    assert one("nll", -8.0, weight=[0.0]) == (0.0, 0.0)
