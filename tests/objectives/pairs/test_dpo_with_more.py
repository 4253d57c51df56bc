"""dpo_degree, dpo_nll, dpo_rationale, xpo, spin: by hand, and where each is DPO again.

The pair of by_hand.py with beta 0.5 has DPO loss 0.20141328 and slope -0.09121276.
"""

from __future__ import annotations

import math

import pytest
import torch
from objectives.by_hand import AT_REFERENCE, PAIR, answer, close, near, pairs

from pyengine.objectives import SPIN, pairwise_loss


def test_dpo_nll_by_hand():
    """4 tokens: 0.20141328 + 10 / 4 = 2.70141328; slope -0.09121276 - 1 / 4 = -0.34121276."""
    ours = answer("dpo_nll", beta=0.5, chosen_lengths=4.0)
    assert ours.loss == near(2.70141328)
    assert ours.chosen == near(-0.34121276)
    assert ours.rejected == near(0.09121276)


def test_dpo_nll_at_the_reference():
    """log 2 + alpha 10 / 4: the reference is no part of the likelihood."""
    ours = answer("dpo_nll", AT_REFERENCE, beta=0.5, alpha=0.2, chosen_lengths=4.0)
    assert ours.loss == near(math.log(2) + 0.5)


def test_dpo_nll_of_an_empty_response_is_finite():
    given = PAIR | {"chosen_logps": 0.0, "ref_chosen_logps": 0.0}
    assert math.isfinite(answer("dpo_nll", given, chosen_lengths=0.0).loss)


def test_dpo_degree_by_hand():
    """gamma 0.5, degrees -1.5 and -2.5: 0.20141328 + 2 = 2.20141328, slopes -0.5 on both; gamma 0
    is DPO."""
    degrees = {"chosen_degree_logps": -1.5, "rejected_degree_logps": -2.5}
    ours = answer("dpo_degree", beta=0.5, gamma=0.5, **degrees)
    assert ours.loss == near(2.20141328)
    assert ours.slopes["chosen_degree_logps"] == near(-0.5)
    assert ours.slopes["rejected_degree_logps"] == near(-0.5)
    assert ours.chosen == near(-0.09121276)
    assert answer("dpo_degree", beta=0.5, gamma=0.0, **degrees).loss == near(0.20141328)


def test_dpo_rationale_by_hand():
    """gamma 0.5, rationale -8: 0.20141328 + 4 = 4.20141328, slope -0.5; averaged over its 4 tokens
    0.20141328 + 1, slope -0.125.
    """
    ours = answer("dpo_rationale", beta=0.5, gamma=0.5, rationale_logps=-8.0)
    assert ours.loss == near(4.20141328)
    assert ours.slopes["rationale_logps"] == near(-0.5)
    assert ours.chosen == near(-0.09121276)
    ours = answer(
        "dpo_rationale",
        beta=0.5,
        gamma=0.5,
        length_normalize=True,
        rationale_logps=-8.0,
        rationale_lengths=4.0,
    )
    assert ours.loss == near(1.20141328)
    assert ours.slopes["rationale_logps"] == near(-0.125)


def test_dpo_rationale_needs_the_lengths_that_it_averages_over():
    with pytest.raises(ValueError) as caught:
        answer("dpo_rationale", rationale_logps=-8.0, length_normalize=True)
    assert (
        str(caught.value) == "[objectives] rationale_lengths must be given to average over tokens"
    )


def test_xpo_by_hand():
    """alpha 0.01, explored -7: 0.20141328 - 0.07 = 0.13141328. The slope 0.01 on the explored
    response is positive: it becomes less likely.
    """
    ours = answer("xpo", beta=0.5, alpha=0.01, explore_logps=-7.0)
    assert ours.loss == near(0.13141328)
    assert ours.slopes["explore_logps"] == near(0.01)
    assert ours.chosen == near(-0.09121276)


@pytest.mark.parametrize("name", ["xpo", "dpo_rationale", "dpo_nll"])
def test_of_weight_zero_they_are_dpo(name):
    given = pairs()
    further = {
        "xpo": {"explore_logps": given["chosen_logps"], "alpha": 0.0},
        "dpo_rationale": {"rationale_logps": given["chosen_logps"], "gamma": 0.0},
        "dpo_nll": {"chosen_lengths": torch.full((9,), 7.0), "alpha": 0.0},
    }[name]
    for options in ({}, {"target": 0.3}):
        ours = pairwise_loss(name, **given, **further, **options)
        close(ours, pairwise_loss("dpo", **given, **options))


@pytest.mark.parametrize(("name", "needed"), [("xpo", "explore"), ("dpo_rationale", "rationale")])
def test_the_third_response_is_needed(name, needed):
    with pytest.raises(ValueError) as caught:
        pairwise_loss(name, **pairs())
    assert str(caught.value) == f"[pairwise_loss] {name} needs {needed}_logps but it is None"


def test_spin_by_hand():
    """mixture 0.25, base -14 and -9: the opponent is 0.75 * -12 + 0.25 * -14 = -12.5 and
    0.75 * -10 + 0.25 * -9 = -9.75; h = (-10 + 12.5) - (-11 + 9.75) = 3.75; z = 0.5 h = 1.875; loss
    0.14267506, slope -0.5 sigmoid(-1.875) = -0.06648212.
    """
    ours = answer("spin", lam=0.5, mixture=0.25, base_chosen_logps=-14.0, base_rejected_logps=-9.0)
    assert ours.loss == near(0.14267506)
    assert ours.chosen == near(-0.06648212)
    assert ours.rejected == near(0.06648212)


def test_spin_is_dpo_against_the_last_iterate_or_the_base():
    given, (one, two, *_) = pairs(1), pairs(2).values()
    base = {"base_chosen_logps": one, "base_rejected_logps": two}
    close(pairwise_loss("spin", **given, lam=0.3), pairwise_loss("dpo", **given, beta=0.3))
    policies = given["chosen_logps"], given["rejected_logps"]
    expected = pairwise_loss("dpo", *policies, *base.values(), beta=0.3)
    close(pairwise_loss("spin", **given, **base, lam=0.3, mixture=1.0), expected)


def test_spin_asks_for_the_base_only_where_it_is_mixed_in():
    assert SPIN().models == ()
    assert SPIN(mixture=0.1).models == ("base",)
    with pytest.raises(ValueError) as caught:
        pairwise_loss("spin", **pairs(), mixture=0.1)
    assert str(caught.value) == "[objectives] base_chosen_logps must be given where mixture > 0"
