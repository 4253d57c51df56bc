"""Objectives that anchor each response to the reference, or that change DPO's curve: APO, NCA, BCO
on pairs, hinge, EXO, DPOP, DiscoPOP, TDPO. Hand arithmetic and limits.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine.objectives import pairwise_loss

LOG2 = math.log(2)


def one(name: str, rho_chosen: float, rho_rejected: float, **options: Any) -> tuple[float, ...]:
    """Loss and its slopes in both log-probs, of one pair with these log-ratios."""
    chosen = torch.tensor([rho_chosen - 20], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([rho_rejected - 9], dtype=torch.float64, requires_grad=True)
    loss = pairwise_loss(name, chosen, rejected, [-20.0], [-9.0], **options)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected), allow_unused=True)
    return loss.item(), *(0.0 if s is None else s.item() for s in slopes)


def test_hinge() -> None:
    """beta 0.5, h = 1 - (-0.4) = 1.4: 1 - 0.7 = 0.3, slopes -0.5 and 0.5; from h = 2 on it is 0."""
    assert one("hinge", 1.0, -0.4, beta=0.5) == pytest.approx((0.3, -0.5, 0.5), rel=1e-14)
    assert one("hinge", 1.5, -0.5, beta=0.5) == (0, 0, 0)
    assert one("hinge", 0.0, 0.0) == pytest.approx((1, -0.1, 0.1))


def test_apo_zero() -> None:
    """beta 0.5, rho (2, -2): s(-1) + s(-1) = 2 * 0.26894142 = 0.53788284;
    slopes -+0.5 s(1) s(-1) = -+0.5 * 0.19661193 = -+0.09830597.
    """
    expected = (0.53788284, -0.09830597, 0.09830597)
    assert one("apo_zero", 2.0, -2.0, beta=0.5) == pytest.approx(expected, abs=5e-9)
    assert one("apo_zero", 0.0, 0.0, beta=0.4) == pytest.approx((1, -0.1, 0.1), rel=1e-14)


def test_apo_down() -> None:
    """beta 0.5, rho (2, -2): s(1) + s(-0.5 * 4) = 0.73105858 + 0.11920292 = 0.85026150;
    slope of chosen 0.5 (0.19661193 - 0.10499359) = 0.04580917: down, although it leads.
    """
    expected = (0.85026150, 0.04580917, 0.5 * 0.10499359)
    assert one("apo_down", 2.0, -2.0, beta=0.5) == pytest.approx(expected, abs=5e-9)
    assert one("apo_down", 0.0, 0.0, beta=0.4) == pytest.approx((1, 0, 0.1), abs=1e-15)


def test_nca_pair() -> None:
    """beta 1, rho (1, -1): 0.31326169 + 0.5 * 1.31326169 + 0.5 * 0.31326169 = 1.12652338;
    slopes -s(-1) + s(1) / 2 = -0.26894142 + 0.36552929 and s(-1) / 2 = 0.13447071.
    """
    expected = (1.12652338, 0.09658787, 0.13447071)
    assert one("nca_pair", 1.0, -1.0, beta=1.0) == pytest.approx(expected, abs=5e-9)
    assert one("nca_pair", 0.0, 0.0, beta=0.4) == pytest.approx((2 * LOG2, -0.1, 0.1), rel=1e-14)


def test_nca_pair_fixes_the_chosen_log_ratio() -> None:
    """Its slope in the chosen log-ratio is -s(-a) + s(a) / 2, which is 0 at e^a = 2: both scales
    are anchored, where DPO's slope is never 0.
    """
    assert one("nca_pair", LOG2 / 0.1, -3.0)[1] == pytest.approx(0, abs=1e-15)


def test_bco_pair() -> None:
    """beta 0.5, rho (2, 1): -log s(1) - log s(-0.5) = 0.31326169 + 0.97407698 = 1.28733867;
    slopes -0.5 s(-1) = -0.13447071 and 0.5 s(0.5) = 0.31122967.
    """
    expected = (1.28733867, -0.13447071, 0.31122967)
    assert one("bco_pair", 2.0, 1.0, beta=0.5) == pytest.approx(expected, abs=5e-9)
    assert one("bco_pair", 0.0, 0.0)[0] == pytest.approx(2 * LOG2, rel=1e-14)


def test_bco_pair_is_above_dpo() -> None:
    """log(1 + e^-a) + log(1 + e^b) >= log(1 + e^(b - a)): the product holds the sum."""
    g = torch.Generator().manual_seed(0)
    logps = list(-50 * torch.rand(4, 200, generator=g, dtype=torch.float64))
    assert (pairwise_loss("bco_pair", *logps) >= pairwise_loss("dpo", *logps)).all()


def test_exo_pair() -> None:
    """beta 0.5, h = 2, z = 1, eps 0.1: s = 0.73105858, s' = 0.26894142.

    s (log s - log 0.9)    0.73105858 (-0.31326169 + 0.10536052) = -0.15198794
    s' (log s' - log 0.1)  0.26894142 (-1.31326169 + 2.30258509) =  0.26607004
    loss 0.11408210; slope 0.5 s s' (z + log 0.1 - log 0.9)
                        =  0.5 * 0.19661193 (1 - 2.19722458) = -0.11769432
    """
    loss, chosen, rejected = one("exo_pair", 2.0, 0.0, beta=0.5, eps=0.1)
    assert loss == pytest.approx(0.11408210, abs=1e-8)
    assert (chosen, rejected) == pytest.approx((-0.11769432, 0.11769432), abs=1e-8)


def test_exo_pair_ends_where_the_odds_are_those_of_the_labels() -> None:
    """s = 1 - eps at z = log((1 - eps) / eps): loss 0, slope 0; at z = 0 the published limit."""
    eps = 1e-3
    expected = pytest.approx((0, 0, 0), abs=1e-14)
    assert one("exo_pair", math.log((1 - eps) / eps) / 0.1, 0.0) == expected
    start = -LOG2 - math.log(eps * (1 - eps)) / 2
    assert one("exo_pair", 0.0, 0.0)[0] == pytest.approx(start, rel=1e-14)


def test_dpop() -> None:
    """beta 0.5, lam 2, rho (-0.5, -2.5): h = 2, penalty 2 * 0.5 = 1, z = 0.5;
    loss 0.47407698; slope of chosen -0.5 * 3 s(-0.5) = -1.5 * 0.37754067 = -0.56631100.
    """
    expected = (0.47407698, -0.56631100, 0.18877033)
    assert one("dpop", -0.5, -2.5, beta=0.5, lam=2.0) == pytest.approx(expected, abs=5e-9)


def test_dpop_without_a_loss_of_the_chosen_is_dpo() -> None:
    assert one("dpop", 0.7, -1.0, beta=0.2) == one("dpo", 0.7, -1.0, beta=0.2)
    assert one("dpop", -0.7, -1.0, beta=0.2, lam=0.0) == one("dpo", -0.7, -1.0, beta=0.2)
    assert one("dpop", 0.0, 0.0)[0] == pytest.approx(LOG2, rel=1e-15)


def test_discopop() -> None:
    """beta 0.5, tau 2, h = 2, z = 1: g = s(0.5) = 0.62245933;
    0.37754067 * 0.31326169 + 0.62245933 * 0.36787944 = 0.11826903 + 0.22898999 = 0.34725902.
    """
    assert one("discopop", 2.0, 0.0, beta=0.5, tau=2.0)[0] == pytest.approx(0.34725902, abs=1e-8)
    assert one("discopop", 0.0, 0.0)[0] == pytest.approx((1 + LOG2) / 2, rel=1e-14)


def test_discopop_is_not_monotone() -> None:
    """At tau 0.05 the published curve has a minimum of 0.786 at -0.119, a maximum of 0.878 at
    0.072; between them the slope in the chosen log-prob is positive: away from it.
    """
    low, high = one("discopop", -0.119, 0.0, beta=1.0), one("discopop", 0.072, 0.0, beta=1.0)
    assert low[0] == pytest.approx(0.786, abs=5e-4)
    assert high[0] == pytest.approx(0.878, abs=5e-4)
    assert abs(low[1]) < 0.02
    assert abs(high[1]) < 0.02
    assert one("discopop", 0.0, 0.0, beta=1.0)[1] > 0


def kl(chosen: float, rejected: float) -> dict[str, Tensor]:
    values = {"chosen_kl": chosen, "rejected_kl": rejected}
    return {
        name: torch.tensor([v], dtype=torch.float64, requires_grad=True)
        for name, v in values.items()
    }


def test_tdpo() -> None:
    """beta 0.5, h = 3, K (1, 5). Version 1: d = 4, z = 0.5 (3 - 4) = -0.5, loss 0.97407698.
    Version 2, alpha 0.5: d = 2, z = 0.5, loss 0.47407698, slope in rejected K
    beta alpha s(-0.5) = 0.25 * 0.37754067 = 0.09438517 and none in chosen K.
    """
    given = kl(1.0, 5.0)
    version_1 = one("tdpo", 2.0, -1.0, beta=0.5, version=1, **given)
    assert version_1[0] == pytest.approx(0.97407698, abs=5e-9)
    assert one("tdpo", 2.0, -1.0, beta=0.5, **given)[0] == pytest.approx(0.47407698, abs=5e-9)
    loss = pairwise_loss("tdpo", *(torch.zeros(1, dtype=torch.float64),) * 4, beta=0.5, **given)
    assert loss.item() == pytest.approx(math.log1p(math.exp(1.0)), rel=1e-14)  # z = -0.5 * 2
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert given["chosen_kl"].grad is None
    assert given["rejected_kl"].grad is not None
    assert given["rejected_kl"].grad.item() == pytest.approx(0.25 / (1 + math.exp(-1.0)), rel=1e-14)


def test_tdpo_of_equal_kl_is_dpo() -> None:
    for version in (1, 2):
        found = one("tdpo", 0.7, -1.0, version=version, **kl(3.0, 3.0))
        assert found == pytest.approx(one("dpo", 0.7, -1.0), rel=1e-14)
