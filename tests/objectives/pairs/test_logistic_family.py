"""rdpo, soft_dpo, mmpo, dno, mcts_dpo, weighted_dpo, cpl: by hand, and in their limits.

The pair of by_hand.py with beta 0.5 has z = 1.5, log(1 + e^-z) = 0.20141328, log(1 + e^z) =
1.70141328, sigmoid(z) = 0.81757448: DPO's loss is 0.20141328, its slope -0.5 (1 - 0.81757448) =
-0.09121276.
"""

from __future__ import annotations

import math

import pytest
import torch
from objectives.by_hand import AT_REFERENCE, answer, close, f64, near, pairs, swapped

from pyengine.objectives import pairwise_loss

LOG2 = math.log(2.0)


def test_rdpo_by_hand():
    """flip_rate 0.1: (0.9 * 0.20141328 - 0.1 * 1.70141328) / 0.8 = 0.01113062 / 0.8 = 0.01391328;
    slope -0.5 (0.18242552 + 0.1 / 0.8) = -0.15371276.
    """
    ours = answer("rdpo", beta=0.5, flip_rate=0.1)
    assert ours.loss == near(0.01391328)
    assert ours.chosen == near(-0.15371276)
    assert ours.rejected == near(0.15371276)


def test_rdpo_at_the_reference_is_log_2():
    """(0.7 log 2 - 0.3 log 2) / 0.4; slope -0.5 (0.5 + 0.3 / 0.4) = -0.625."""
    ours = answer("rdpo", AT_REFERENCE, beta=0.5, flip_rate=0.3)
    assert ours.loss == near(LOG2)
    assert ours.chosen == near(-0.625)


@pytest.mark.parametrize("flip_rate", [0.0, 0.1, 0.4])
def test_rdpo_averaged_over_flips_is_clean_dpo(flip_rate):
    """(1 - e) rdpo(pair) + e rdpo(pair with its labels flipped) = dpo(pair)."""
    given = pairs()
    flipped = swapped(given)
    straight = pairwise_loss("rdpo", **given, flip_rate=flip_rate)
    turned = pairwise_loss("rdpo", **flipped, flip_rate=flip_rate)
    close((1 - flip_rate) * straight + flip_rate * turned, pairwise_loss("dpo", **given))


def test_rdpo_is_not_bounded_below():
    """z = 1e4, e = 0.1: -0.1 * 1e4 / 0.8 = -1250."""
    zero = f64(0.0)
    loss = pairwise_loss("rdpo", f64(1e4), zero, zero, zero, beta=1.0, flip_rate=0.1)
    assert loss.item() == near(-1250.0)


def test_soft_dpo_by_hand():
    """p 0.8: 0.8 * 0.20141328 + 0.2 * 1.70141328 = 0.50141328; slope 0.5 (0.81757448 - 0.8) =
    0.00878724.
    """
    ours = answer("soft_dpo", beta=0.5, target=0.8)
    assert ours.loss == near(0.50141328)
    assert ours.chosen == near(0.00878724)
    assert ours.rejected == near(-0.00878724)


def test_soft_dpo_at_its_target_is_at_rest():
    assert answer("soft_dpo", beta=0.5, target=1 / (1 + math.exp(-1.5))).chosen == near(0.0)


def test_soft_dpo_of_sure_labels_is_dpo():
    given = pairs(1)
    for target in (1.0, torch.ones(9)):
        close(pairwise_loss("soft_dpo", **given, target=target), pairwise_loss("dpo", **given))


def test_soft_dpo_needs_its_target():
    with pytest.raises(ValueError, match=r"^\[pairwise_loss\] soft_dpo needs target but it is"):
        pairwise_loss("soft_dpo", **pairs())


def test_mmpo_by_hand():
    """gamma 2, scores 1 and 0.5: p = sigmoid(1) = 0.73105858; loss 0.20141328 + (1 - p) 1.5 =
    0.60482541; slope 0.5 (0.81757448 - 0.73105858) = 0.04325795.
    """
    ours = answer("mmpo", beta=0.5, gamma=2.0, chosen_scores=1.0, rejected_scores=0.5)
    assert ours.loss == near(0.60482541)
    assert ours.chosen == near(0.04325795)


def test_mmpo_rests_where_the_margin_is_that_of_the_scores():
    """beta h = 1.5 = gamma (2 - 1.25)."""
    ours = answer("mmpo", beta=0.5, gamma=2.0, chosen_scores=2.0, rejected_scores=1.25)
    assert ours.chosen == near(0.0)


def test_mmpo_of_far_apart_scores_is_dpo():
    given = pairs(2)
    ours = pairwise_loss("mmpo", **given, chosen_scores=50.0, rejected_scores=0.0)
    close(ours, pairwise_loss("dpo", **given))


def test_dno_by_hand():
    """Win rates 0.9 and 0.4: p = sigmoid(0.5) = 0.62245933; loss 0.20141328 + (1 - p) 1.5 =
    0.76772429; slope 0.5 (0.81757448 - 0.62245933) = 0.09755757.
    """
    ours = answer("dno", eta=0.5, chosen_scores=0.9, rejected_scores=0.4)
    assert ours.loss == near(0.76772429)
    assert ours.chosen == near(0.09755757)


def test_dno_of_equal_win_rates_is_at_rest_at_the_reference():
    ours = answer("dno", AT_REFERENCE, chosen_scores=0.6, rejected_scores=0.6)
    assert ours.loss == near(LOG2)
    assert ours.chosen == near(0.0)


def test_mcts_dpo_by_hand():
    """30 and 10 visits: e = 1 / (3 + 1) = 0.25; loss 0.20141328 + 0.25 * 1.5 = 0.57641328; slope
    0.5 (0.81757448 - 0.75) = 0.03378724.
    """
    ours = answer("mcts_dpo", beta=0.5, chosen_visits=30, rejected_visits=10)
    assert ours.loss == near(0.57641328)
    assert ours.chosen == near(0.03378724)


def test_mcts_dpo_without_visits_of_one_branch_or_of_both():
    """e = 0 is DPO; no visits at all say nothing: e = 1/2, which at z = 1.5 is 0.95141328."""
    assert answer("mcts_dpo", beta=0.5, chosen_visits=9, rejected_visits=0).loss == near(0.20141328)
    assert answer("mcts_dpo", beta=0.5, chosen_visits=0, rejected_visits=4).loss == near(1.70141328)
    assert answer("mcts_dpo", beta=0.5, chosen_visits=0, rejected_visits=0).loss == near(0.95141328)


def test_weighted_dpo_by_hand():
    """w 0.3, or 0.5 * 0.6: loss 0.3 * 0.20141328 = 0.06042398, slope -0.3 * 0.09121276 =
    -0.02736383.
    """
    weights = [{"weight": f64(0.3)}, {"chosen_weight": f64(0.5), "rejected_weight": f64(0.6)}]
    for given in weights:
        ours = answer("weighted_dpo", beta=0.5, **given)
        assert ours.loss == near(0.06042398)
        assert ours.chosen == near(-0.02736383)


def test_weighted_dpo_of_weight_one_is_dpo():
    given = pairs(3)
    ours = pairwise_loss("weighted_dpo", **given, weight=torch.ones(9), target=0.7)
    close(ours, pairwise_loss("dpo", **given, target=0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_dpo_gives_its_weight_no_gradient(dtype):
    given = {name: value.to(dtype) for name, value in pairs(4).items()}
    given["chosen_logps"].requires_grad_()
    weight = torch.ones(9, dtype=dtype, requires_grad=True)
    pairwise_loss("weighted_dpo", **given, weight=weight).sum().backward()
    assert weight.grad is None
    assert given["chosen_logps"].grad.abs().min() > 0


def test_weighted_dpo_needs_a_weight():
    with pytest.raises(ValueError) as caught:
        pairwise_loss("weighted_dpo", **pairs())
    assert str(caught.value) == (
        "[weighted_dpo] weight, or chosen_weight and rejected_weight, must be given"
    )


def test_cpl_by_hand():
    """alpha 0.1, bias 0.5: z = 0.1 (-10 + 0.5 * 11) = -0.45; loss log(1 + e^0.45) = 0.94324895;
    slopes -0.1 sigmoid(0.45) = -0.06106392 and half of that, turned.
    """
    ours = answer("cpl", alpha=0.1, bias=0.5)
    assert ours.loss == near(0.94324895)
    assert ours.chosen == near(-0.06106392)
    assert ours.rejected == near(0.03053196)


def test_cpl_of_bias_one_is_dpo_without_a_reference():
    given = pairs(5)
    zero = torch.zeros(9, dtype=torch.float64)
    policies = given["chosen_logps"], given["rejected_logps"]
    expected = pairwise_loss("dpo", *policies, zero, zero, beta=0.2)
    close(pairwise_loss("cpl", *policies, alpha=0.2), expected)
    close(pairwise_loss("cpl", **given, alpha=0.2), expected)
