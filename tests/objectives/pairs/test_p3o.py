"""P3O: by hand, where it clips, and the pairwise policy gradient that it starts from."""

from __future__ import annotations

import pytest
import torch
from objectives.by_hand import AT_REFERENCE, PAIR, answer, close, near, pairs

from pyengine.errors import ConfigError
from pyengine.objectives import get, pairwise_loss

REWARDS = {"chosen_scores": 3.0, "rejected_scores": 1.0}  # A = 1
INSIDE = PAIR | {"ref_chosen_logps": -10.1, "ref_rejected_logps": -10.95}  # rho 0.1, -0.05


def test_by_hand():
    """rho 0.1 and -0.05, A = 1, nothing clipped: version 2 -e^0.15 = -1.16183424, with slopes of
    that size; version 1 -e^0.1 + e^-0.05 = -0.15394149, with slopes -e^0.1 and e^-0.05.
    """
    jointly = answer("p3o", INSIDE, **REWARDS)
    assert jointly.loss == near(-1.16183424)
    assert jointly.chosen == near(-1.16183424)
    assert jointly.rejected == near(1.16183424)
    each = answer("p3o", INSIDE, **REWARDS, version=1)
    assert each.loss == near(-0.15394149)
    assert each.chosen == near(-1.10517092)
    assert each.rejected == near(0.95122942)


def test_what_went_far_enough_is_clipped():
    """rho 2 and -1, A = 1: the joint ratio e^3 counts as 1.2, those of version 1 as 1.2 and 0.8."""
    jointly = answer("p3o", **REWARDS)
    assert jointly.loss == near(-1.2)
    assert jointly.chosen == jointly.rejected == 0.0
    each = answer("p3o", **REWARDS, version=1)
    assert each.loss == near(-1.2 + 0.8)
    assert each.chosen == each.rejected == 0.0


def test_what_went_the_wrong_way_is_not_clipped():
    """The same with the rewards exchanged, A = -1: loss and slope of version 2 are e^3."""
    wrong = {"chosen_scores": 1.0, "rejected_scores": 3.0}
    ours = answer("p3o", **wrong)
    assert ours.loss == near(20.08553692)
    assert ours.chosen == near(20.08553692)


@pytest.mark.parametrize("version", [1, 2])
def test_at_the_reference_it_is_the_pairwise_policy_gradient(version):
    """-(r_c - r_r) / 2 times the gradient of log pi(chosen) - log pi(rejected)."""
    rewards = {"chosen_scores": 0.5, "rejected_scores": -0.25}
    ours = answer("p3o", AT_REFERENCE, **rewards, version=version)
    assert ours.chosen == near(-0.375)
    assert ours.rejected == near(0.375)


@pytest.mark.parametrize("version", [1, 2])
def test_a_number_added_to_both_rewards_changes_nothing(version):
    given = pairs(spread=0.2)
    one, two = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = (
        pairwise_loss(
            "p3o", **given, chosen_scores=one + c, rejected_scores=two + c, version=version
        )
        for c in (0.0, 12.5)
    )
    close(low, high)


def test_by_hand_against_the_sampler():
    """Sampler -10.1 and -10.95 as the reference above: the same ratio. The penalty 0.5 takes 0.5 *
    (-10.1 + 12) = 0.95 off the chosen reward 3 and 0.5 * (-10.95 + 10) = -0.475 off the other, 1:
    A = (2.05 - 1.475) / 2 = 0.2875."""
    sampled = {"chosen_sampler_logps": -10.1, "rejected_sampler_logps": -10.95}
    plain = answer("p3o", **REWARDS, **sampled, old="sampler")
    assert plain.chosen == near(-1.16183424)
    shaped = answer("p3o", **REWARDS, **sampled, old="sampler", kl_coef=0.5)
    assert shaped.loss == near(-1.16183424 * 0.2875)
    assert shaped.rejected == near(1.16183424 * 0.2875)


def test_what_the_sampler_and_the_penalty_need():
    with pytest.raises(ConfigError, match=r"\[p3o\] kl_coef must be 0 with old 'reference'"):
        get("p3o", kl_coef=0.1)
    with pytest.raises(ValueError, match="chosen_sampler_logps must be given with old 'sampler'"):
        answer("p3o", **REWARDS, old="sampler")
    kinds = [("reference", 0.0), ("sampler", 0.0), ("sampler", 0.1)]
    made = [get("p3o", old=old, kl_coef=kl) for old, kl in kinds]
    assert [(o.needs_reference, o.needs_sampler) for o in made] == [
        (True, False), (False, True), (True, True)
    ]  # fmt: skip
