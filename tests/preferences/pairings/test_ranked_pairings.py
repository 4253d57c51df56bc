"""Pairings by the order of rewards: which pairs, how sure, and by how much."""

from __future__ import annotations

import math

import pytest

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import AllPairs, BestWorst, Feedback, Group, Response
from pyengine.preferences.pairings.adjacent_ranks import AdjacentRanks
from pyengine.preferences.pairings.available import PAIRINGS
from pyengine.preferences.pairings.curriculum import Curriculum
from pyengine.preferences.pairings.margin_threshold import MarginThreshold
from pyengine.preferences.pairings.mean_minus_sigma import MeanMinusSigma
from pyengine.preferences.pairings.top_half import TopHalf


def pairs_of(rule, *rewards, matrix=None):
    groups = [Group([1], [Response([10 + k]) for k in range(len(row))]) for row in rewards]
    feedback = Feedback.from_rewards(rewards)
    feedback.preference_matrix = matrix
    return rule(groups, feedback)


def sides(rule, *rewards):
    return [(c.group, c.winner, c.loser) for c in pairs_of(rule, *rewards).comparisons]


def test_best_against_the_nearest_to_an_anchor():
    """Mean 2, variance (4 + 4 + 0 + 1 + 1) / 5 = 2: mu - 2s = -0.8, mu - s = 0.6, mu + s = 3.4."""
    rewards = [4.0, 0.0, 2.0, 3.0, 1.0]
    for chosen, rejected, expected in (
        ("max", -2, (0, 0, 1)),
        ("max", -1, (0, 0, 4)),
        ("max", 0.0, (0, 0, 2)),
        (1, -1.0, (0, 3, 4)),
        (0, "min", (0, 2, 1)),
    ):
        assert sides(MeanMinusSigma(chosen=chosen, rejected=rejected), rewards) == [expected]


def test_a_freak_is_not_the_sweet_spot():
    """Sum -14, squares 100 of 19: mu - 2s = -0.74 - 2 * 2.17 = -5.1, nearer -3 than -9."""
    rewards = [1.0, *[0.0] * 15, -3.0, -3.0, -9.0]
    assert sides(MeanMinusSigma(), rewards) == [(0, 0, 16)]
    assert sides(BestWorst(), rewards) == [(0, 0, 18)]


def test_anchors_on_one_response_are_a_tie():
    """Of (0, 0, 9) mu - s is -1.2 and mu 3: both fall on the first 0."""
    pairs = pairs_of(MeanMinusSigma(chosen=0, rejected=-1), [0.0, 0.0, 9.0])
    assert pairs.comparisons == []
    assert pairs.counts == {"ties": 1, "equal": 0, "too_few": 0, "reversed": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chosen": "best"}, "chosen must be max, min, or a finite number .* but is 'best'"),
        ({"chosen": "min"}, "chosen must lie above rejected but they are 'min' and -2.0"),
        ({"rejected": float("nan")}, "rejected must be max, min, or a finite number"),
        ({"chosen": -1, "rejected": -1}, "chosen must lie above rejected"),
    ],
)
def test_anchors_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        MeanMinusSigma(**settings)


def test_orders_of_ranks():
    four, five = [1.0, 4.0, 2.0, 3.0], [4.0, 0.0, 2.0, 3.0, 1.0]
    assert sides(AdjacentRanks(), four) == [(0, 1, 3), (0, 3, 2), (0, 2, 0)]
    assert sides(TopHalf(), four) == [(0, 1, 2), (0, 3, 0)]
    assert sides(TopHalf(), five) == [(0, 0, 4), (0, 3, 1)]  # the middle one in neither half
    assert sides(Curriculum(), four) == [(0, 1, 0), (0, 1, 2), (0, 1, 3)]


def test_neighbours_of_equal_rank_are_ties():
    pairs = pairs_of(AdjacentRanks(), [1.0, 2.0, 2.0, None], [1.0])
    assert [(c.winner, c.loser) for c in pairs.comparisons] == [(2, 0)]
    assert pairs.counts == {"ties": 1, "equal": 0, "too_few": 1}


def test_margins_within_limits():
    """Of 0, 1, 3, 3 the gaps are 3, 3 (too wide), 2, 2, 1 and a tie."""
    rule = MarginThreshold(max_margin=2.0, first="narrow", max_pairs=2)
    pairs = pairs_of(rule, [0.0, 1.0, 3.0, 3.0])
    assert [(c.winner, c.loser) for c in pairs.comparisons] == [(1, 0), (2, 1)]
    assert pairs.counts == {"ties": 1, "equal": 0, "too_few": 0, "wide": 2, "capped": 1}
    wide = MarginThreshold(min_margin=1.0)
    assert sides(wide, [0.0, 1.0, 3.0]) == [(0, 2, 0), (0, 2, 1)]
    with pytest.raises(ConfigError, match=r"max_margin must be > min_margin \(2.0\) but is 1.0"):
        MarginThreshold(min_margin=2.0, max_margin=1.0)


def test_probabilities_of_bradley_terry_and_margins():
    """Gaps 2 and 4 over a scale of 2: odds of e and e^2."""
    rule = AllPairs(probability="bradley_terry", scale=2.0, margins=True)
    wide, *narrow = pairs_of(rule, [0.0, 2.0, 4.0]).comparisons
    assert wide.probability == pytest.approx(math.e**2 / (1 + math.e**2))
    assert [c.probability for c in narrow] == pytest.approx([math.e / (1 + math.e)] * 2)
    assert [wide.margin, *(c.margin for c in narrow)] == [4.0, 2.0, 2.0]


def test_probabilities_of_the_source():
    """What the matrix says of the pair, and not of its mirror; where it says nothing, no pair."""
    matrix = [[[0.5, 0.7, None], [0.4, 0.5, 0.9], [None, 0.1, 0.5]]]
    pairs = pairs_of(AllPairs(probability="matrix"), [2.0, 1.0, 0.0], matrix=matrix)
    found = {(c.winner, c.loser): c.probability for c in pairs.comparisons}
    assert found == {(0, 1): 0.7, (1, 2): 0.9}
    assert pairs.counts["unknown"] == 1
    with pytest.raises(RequestError, match=r"needs Feedback\.preference_matrix but"):
        pairs_of(BestWorst(probability="matrix"), [1.0, 0.0])


def test_a_scale_that_does_nothing_is_refused():
    with pytest.raises(ConfigError, match="scale is used where probability is 'bradley_terry'"):
        BestWorst(scale=2.0)


@pytest.mark.parametrize("name", PAIRINGS.names())
def test_every_pairing_skips_what_cannot_be_compared(name):
    """Without two rewards and tokens there is no pair, and something is counted."""
    groups = [Group([1], [Response([]), Response([5], origin="gold")]), Group([1], [])]
    feedback = Feedback.from_rewards([[1.0, None], []])
    feedback.columns = {"reward_std": [[1.0, 1.0], []]}
    pairs = PAIRINGS.make(name)(groups, feedback)
    assert pairs.comparisons == []
    assert sum(pairs.counts.values()) == 2
