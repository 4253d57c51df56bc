"""Pairings of responses that come from different places: reference answers, past and future."""

from __future__ import annotations

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Comparison, Feedback, Group, Response
from pyengine.preferences.pairings.against_gold import AgainstGold
from pyengine.preferences.pairings.against_snapshot import AgainstSnapshot
from pyengine.preferences.pairings.gold_wins import GoldWins


def paired(rule, origins, rewards):
    responses = [Response([10 + k], origin=origin) for k, origin in enumerate(origins)]
    pairs = rule([Group([1], responses)], Feedback.from_rewards([rewards]))
    return [(c.winner, c.loser) for c in pairs.comparisons], pairs.counts


ORIGINS, REWARDS = ["gold", None, "policy", None], [2.0, 3.0, 1.0, 2.5]


def test_gold_against_samples_in_both_directions():
    """Gaps with gold: -1, 1, -0.5; the last is a tie at a least gap of 0.6."""
    found, counts = paired(AgainstGold(min_margin=0.6), ORIGINS, REWARDS)
    assert found == [(0, 2), (1, 0)]
    assert (counts["ties"], counts["gold_lost"], counts["no_gold"]) == (1, 1, 0)


def test_samples_among_each_other_too():
    found, counts = paired(AgainstGold(min_margin=0.6, samples=True), ORIGINS, REWARDS)
    assert found == [(1, 2), (3, 2), (0, 2), (1, 0)]  # gaps 2, 1.5, 1, 1
    assert counts["ties"] == 2


def test_two_reference_answers_are_not_compared():
    found, _ = paired(AgainstGold(samples=True), ["gold", "gold", None], [1.0, 2.0, 0.0])
    assert found == [(1, 2), (0, 2)]


def test_groups_without_gold():
    found, counts = paired(AgainstGold(), [None, None], [1.0, 2.0])
    assert found == []
    assert counts["no_gold"] == 1


def test_gold_wins_without_rewards():
    responses = [Response([1]), Response([2], origin="gold"), Response([2]), Response([])]
    groups = [Group([9], responses), Group([9], responses[:1]), Group([9], responses[1:2])]
    feedback = Feedback.from_rewards([[5.0, None, None, None], [1.0], [None]])
    pairs = GoldWins()(groups, feedback)
    assert pairs.comparisons == [Comparison(0, 1, 0)]
    assert pairs.counts == {"equal": 1, "too_few": 1, "no_gold": 1, "capped": 0}


def test_present_and_future_against_the_past():
    """The best of the policy and the future, 3, against the worst of the past, 0."""
    origins = ["past", "future", None, "past", "other"]
    rule = AgainstSnapshot(chosen=("policy", "future"), rejected=("past",))
    assert paired(rule, origins, [1.0, 3.0, 2.0, 0.0, 9.0])[0] == [(1, 3)]
    found, counts = paired(rule, origins, [4.0, 3.0, 2.0, 4.0, 9.0])
    assert found == []
    assert (counts["reversed"], counts["missing"]) == (1, 0)
    assert paired(rule, [None, "other"], [1.0, 2.0])[1]["missing"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chosen": ()}, "chosen must be a list of different names"),
        ({"rejected": ("a", "a")}, "rejected must be a list of different names"),
        ({"chosen": ("a", "b"), "rejected": ("b",)}, "different origins but both have b"),
    ],
)
def test_origins_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        AgainstSnapshot(**settings)
