"""sppo, inpo, onpo, irepo, rebel, bfpo, srpo: by hand, and in their limits.

The pair of by_hand.py has log-ratios 2 and -1, so h = 3.
"""

from __future__ import annotations

import math

import pytest
import torch
from objectives.by_hand import AT_REFERENCE, answer, close, near, pairs, swapped

from pyengine.objectives import pairwise_loss


def test_sppo_by_hand():
    """beta 0.5, win rates 1 and 0: aims 1 and -1, loss ((2 - 1)^2 + (-1 + 1)^2) / 2 = 0.5. With
    0.9 and 0.4: aims 0.8 and -0.2, loss (1.2^2 + 0.8^2) / 2 = 1.04, slopes 1.2 and -0.8.
    """
    ours = answer("sppo", beta=0.5)
    assert ours.loss == near(0.5)
    assert ours.chosen == near(1.0)
    assert ours.rejected == near(0.0)
    ours = answer("sppo", beta=0.5, chosen_win_rate=0.9, rejected_win_rate=0.4)
    assert ours.loss == near(1.04)
    assert ours.chosen == near(1.2)
    assert ours.rejected == near(-0.8)


def test_sppo_without_the_half():
    ours = answer("sppo", beta=0.5, chosen_win_rate=0.9, rejected_win_rate=0.4, halve=False)
    assert ours.loss == near(2.08)


def test_sppo_at_the_reference():
    """1 / (4 beta^2) of hard labels; 0 of even win rates."""
    assert answer("sppo", AT_REFERENCE, beta=0.1).loss == near(25.0)
    even = answer("sppo", AT_REFERENCE, chosen_win_rate=0.5, rejected_win_rate=0.5)
    assert even.loss == near(0.0)
    assert even.chosen == near(0.0)


def test_inpo_by_hand():
    """eta 0.5, k 1/3, pi_t -13 and -9.5: chosen -10 + 12 / 3 + 26 / 3 = 8 / 3; rejected
    -11 + 10 / 3 + 19 / 3 = -4 / 3; h_t = 4; loss (4 - 1)^2 = 9, slope 6.
    """
    ours = answer("inpo", eta=0.5, current_chosen_logps=-13.0, current_rejected_logps=-9.5)
    assert ours.loss == near(9.0)
    assert ours.chosen == near(6.0)
    assert ours.rejected == near(-6.0)


def test_inpo_is_ipo_against_the_reference_or_the_iterate():
    given, (one, two, *_) = pairs(), pairs(1).values()
    current = {"current_chosen_logps": one, "current_rejected_logps": two}
    sums = {"beta": 0.2, "length_normalize": False}
    ours = pairwise_loss("inpo", **given, **current, eta=0.2, tau_over_eta=1.0)
    close(ours, pairwise_loss("ipo", **given, **sums))
    ours = pairwise_loss("inpo", **given, **current, eta=0.2, tau_over_eta=0.0)
    policies = given["chosen_logps"], given["rejected_logps"]
    close(ours, pairwise_loss("ipo", *policies, *current.values(), **sums))


def test_inpo_where_all_three_models_are_one():
    """1 / (4 eta^2) = 1 / (4 * 0.25) = 1."""
    current = {"current_chosen_logps": -10.0, "current_rejected_logps": -11.0}
    assert answer("inpo", AT_REFERENCE, eta=0.5, **current).loss == near(1.0)


def test_inpo_and_spin_keep_small_differences_of_long_responses_in_float32():
    """Log-probs near -512, which float32 holds in steps of 2^-14 = 6e-5. Mixing two of them would
    round to such a step; as a shift of small differences the loss agrees with float64 to 1e-6.
    """
    step = 2.0**-14
    given = {
        "chosen_logps": -512.25,
        "rejected_logps": -511.5 + 3 * step,
        "ref_chosen_logps": -512.25 + 4 * step,
        "ref_rejected_logps": -511.5,
    }
    current = {"chosen": -512.25 - 7 * step, "rejected": -511.5 - 2 * step}
    mixed = torch.tensor(-512.25 + 4 * step) / 3 + torch.tensor(-512.25 - 7 * step) * 2 / 3
    assert abs(mixed.item() - (-512.25 - 10 / 3 * step)) > 1e-5
    for name, model, options in (
        ("inpo", "current", {"eta": 0.5}),
        ("spin", "base", {"lam": 1.0, "mixture": 0.3}),
    ):
        further = {f"{model}_{operand}_logps": v for operand, v in current.items()}
        narrow = {k: torch.tensor([v]) for k, v in (given | further).items()}
        wide = {k: v.double() for k, v in narrow.items()}
        ours = pairwise_loss(name, **narrow, **options).item()
        assert ours == pytest.approx(pairwise_loss(name, **wide, **options).item(), abs=1e-6)


def test_onpo_by_hand():
    """eta 0.5: (3 - 1)^2 = 4, slope 4; at the reference 1 / (4 eta^2) = 1."""
    ours = answer("onpo", eta=0.5)
    assert ours.loss == near(4.0)
    assert ours.chosen == near(4.0)
    assert ours.rejected == near(-4.0)
    assert answer("onpo", AT_REFERENCE, eta=0.5).loss == near(1.0)


def test_irepo_by_hand():
    """beta 0.5, p 0.8: log odds log 4 = 1.38629436; (1.5 - 1.38629436)^2 = 0.01292897; slope
    2 * 0.5 * 0.11370564.
    """
    ours = answer("irepo", beta=0.5, target=0.8)
    assert ours.loss == near(0.01292897)
    assert ours.chosen == near(0.11370564)
    assert ours.rejected == near(-0.11370564)


def test_irepo_of_unanimous_votes_and_of_a_tie():
    """eps 1e-3: the log odds of p = 1 are those of 0.999, log 999; a tie is at rest at the
    reference.
    """
    assert answer("irepo", beta=0.5, target=1.0).loss == near((1.5 - math.log(999)) ** 2)
    assert answer("irepo", beta=0.5, target=0.0).loss == near((1.5 + math.log(999)) ** 2)
    assert answer("irepo", AT_REFERENCE, target=0.5).loss == near(0.0)


def test_rebel_by_hand():
    """eta 0.5, rewards 3 and 1: (3 - 0.5 * 2)^2 = 4, slope 4; at the reference (0.5 * 2)^2 = 1."""
    rewards = {"chosen_scores": 3.0, "rejected_scores": 1.0}
    ours = answer("rebel", eta=0.5, **rewards)
    assert ours.loss == near(4.0)
    assert ours.chosen == near(4.0)
    assert ours.rejected == near(-4.0)
    assert answer("rebel", AT_REFERENCE, eta=0.5, **rewards).loss == near(1.0)


def test_rebel_knows_no_order_and_no_level_of_rewards():
    given = pairs(2)
    one, two = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = pairwise_loss("rebel", **given, chosen_scores=one, rejected_scores=two)
    close(ours, pairwise_loss("rebel", **swapped(given), chosen_scores=two, rejected_scores=one))
    raised = pairwise_loss("rebel", **given, chosen_scores=one + 7, rejected_scores=two + 7)
    close(ours, raised)


@pytest.mark.parametrize(
    ("chosen", "rejected", "aim"), [(1, 0, 1.0), (1, 1, 0.5), (0, 0, -0.5), (0, 1, -1.0)]
)
def test_bfpo_by_hand(chosen, rejected, aim):
    """tau 0.5: aims of h (1.5 S_c - 0.5 S_r - 0.5) / 0.5 = 2, 1, -1, -2; losses (3 - aim)^2 = 1, 4,
    16, 25; slopes 2 (3 - aim).
    """
    ours = answer("bfpo", tau=0.5, chosen_safe=chosen, rejected_safe=rejected)
    assert ours.loss == near((3 - 2 * aim) ** 2)
    assert ours.chosen == near(2 * (3 - 2 * aim))
    assert ours.rejected == near(-2 * (3 - 2 * aim))


def test_bfpo_of_safe_responses_is_ipo_on_sums():
    given = pairs(3)
    ours = pairwise_loss("bfpo", **given, tau=0.2, chosen_safe=1, rejected_safe=1)
    close(ours, pairwise_loss("ipo", **given, beta=0.2, length_normalize=False))


def test_bfpo_refuses_a_weight_of_one():
    with pytest.raises(ValueError, match=r"^\[bfpo\] b1 must be > 1 and finite but is 1.0$"):
        answer("bfpo", b1=1.0, chosen_safe=1, rejected_safe=1)


SIX = {"chosen_from_rejected": 1.0, "rejected_from_chosen": -0.5, "chosen_from_chosen": 0.5,
       "rejected_from_rejected": -1.0}  # fmt: skip


def improved(ratios: dict[str, float]) -> dict[str, float]:
    """Log-probs that have these log-ratios, the reference's all -20."""
    policy = {f"{name}_logps": ratio - 20 for name, ratio in ratios.items()}
    return policy | {f"ref_{name}": -20.0 for name in policy}


def test_srpo_by_hand():
    """beta 0.5, alpha 0.5, s_cr 1, s_rc -0.5, s_cc 0.5, s_rr -1: 0.5 (1 + 0.5 + 3) - 1 = 1.25;
    A = 0.5 * 2 - 0.5 = 0.5; B = 0.5 * 1 - 0.5 = 0; loss 0.5 * 1.5625 + 0.25 * 0.25 = 0.84375.
    Slopes of the first part 0.5 * 2 * 1.25 * 0.5 = 0.625, of A 0.25 * 2 * 0.5 * 0.5 = 0.125.
    """
    ours = answer("srpo", beta=0.5, alpha=0.5, **improved(SIX))
    assert ours.loss == near(0.84375)
    assert ours.slopes == {
        "chosen_logps": near(0.625),
        "rejected_logps": near(-0.625),
        "chosen_from_rejected_logps": near(0.75),
        "rejected_from_chosen_logps": near(-0.625),
        "chosen_from_chosen_logps": near(0.0),
        "rejected_from_rejected_logps": near(-0.125),
    }


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_srpo_at_the_reference(alpha):
    """(1 - a) 1 + (a / 2) (1/4 + 1/4) = 1 - 3 a / 4."""
    ours = answer("srpo", AT_REFERENCE, alpha=alpha, **improved(dict.fromkeys(SIX, 0.0)))
    assert ours.loss == near(1 - 0.75 * alpha)


def test_srpo_rests_where_its_log_ratios_are_the_preference():
    """Responses 1 and 2, P(2 beats 1) = 0.7, beta 1: at s_21 - s_11 = 0.2, s_22 - s_12 = 0.2 and
    s_21 - s_12 + rho_2 - rho_1 = 0.4 the slopes, averaged over who wins, are 0.
    """
    ratios = {"21": 0.3, "11": 0.1, "22": 0.25, "12": 0.05}
    rho = {"2": 0.4 - 0.25, "1": 0.0}
    total = dict.fromkeys(["1", "2", *ratios], 0.0)
    for c, r, p in (("2", "1", 0.7), ("1", "2", 0.3)):
        of = {"chosen": c, "rejected": r, "chosen_from_rejected": c + r,
              "rejected_from_chosen": r + c, "chosen_from_chosen": c + c,
              "rejected_from_rejected": r + r}  # fmt: skip
        given = improved({name: (rho | ratios)[key] for name, key in of.items()})
        slopes = answer("srpo", given, beta=1.0, alpha=0.6).slopes
        for name, key in of.items():
            total[key] += p * slopes[f"{name}_logps"]
    assert total == {key: pytest.approx(0.0, abs=1e-14) for key in total}
