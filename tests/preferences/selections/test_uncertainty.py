"""Selection by how sure a reward is of a comparison."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import Comparison, Feedback, Group, Pairs, Response
from pyengine.preferences.selections.uncertainty import Uncertainty

LOG3 = math.log(3)
# Gaps of three comparisons under two particles: +- log 3, both 900, +- 900.
UNSURE, SURE, SPLIT = (0, 0, 1), (0, 2, 3), (0, 4, 5)
INFORMATION = 0.188722  # of +- log 3, in bits


def select(rule, round=0):
    feedback = Feedback.from_rewards([[1.0, 0.0] * 3])
    feedback.columns = {
        "p": [[LOG3, 0.0, 900.0, 0.0, 900.0, 0.0]],
        "q": [[-LOG3, 0.0, 900.0, 0.0, -900.0, 0.0]],
    }
    groups = [Group([1], [Response([k]) for k in range(6)])]
    pairs = Pairs([Comparison(*c) for c in (UNSURE, SURE, SPLIT)])
    return rule(groups, feedback, pairs, round)


def sides(pairs):
    return [(c.group, c.winner, c.loser) for c in pairs.comparisons]


def rule(keep="certain", **settings):
    return Uncertainty(keep=keep, particles=("p", "q"), **settings)


def test_what_is_kept_first():
    assert sides(select(rule(most=1))) == [SURE]
    assert sides(select(rule(most=2))) == [UNSURE, SURE]
    assert sides(select(rule("uncertain", most=1))) == [SPLIT]
    assert sides(select(rule("varied", most=2))) == [UNSURE, SPLIT]
    assert select(rule(most=1)).counts == {"over_budget": 2, "unknown": 0}


def test_drawn_in_proportion_to_certainty():
    """1 - BALD is 0.811, 1 and 0: of one draw 0.448 and 0.552."""
    found = Counter(sides(select(rule("drawn", most=1), r))[0] for r in range(1000))
    chance = (1 - INFORMATION) / (2 - INFORMATION)
    assert abs(found[UNSURE] - 1000 * chance) < 48  # three standard deviations
    assert found[SPLIT] == 0
    first = [sides(select(rule("drawn", most=1, seed=5), r)) for r in range(20)]
    assert first == [sides(select(rule("drawn", most=1, seed=5), r)) for r in range(20)]


def test_weights_and_probabilities():
    found = select(rule(weigh=True, soften=True))
    weights = [c.weight for c in found.comparisons]
    assert weights == pytest.approx([1 - INFORMATION, 1.0, 0.0], abs=1e-6)
    assert [c.probability for c in found.comparisons] == pytest.approx([0.5, 1.0, 0.5])


def test_winners_that_the_particles_doubt():
    found = select(rule(doubted=False))
    assert sides(found) == [SURE]
    assert found.counts == {"over_budget": 0, "unknown": 0, "doubted": 2}


def test_a_spread_instead_of_particles():
    """Gaps of 1: with a spread of 0.1 surer than with 3; one spread is missing."""
    groups = [Group([1], [Response([k]) for k in range(3)])]
    feedback = Feedback.from_rewards([[2.0, 1.0, 0.0]])
    pairs = Pairs([Comparison(0, 0, 1), Comparison(0, 1, 2)])
    with pytest.raises(RequestError, match=r"\[uncertainty\] needs 'reward_std'"):
        Uncertainty()(groups, feedback, pairs)
    feedback.columns = {"reward_std": [[3.0, 0.1, 0.1]]}
    assert sides(Uncertainty(most=1)(groups, feedback, pairs)) == [(0, 1, 2)]
    feedback.columns = {"reward_std": [[3.0, 0.1, None]]}
    found = Uncertainty()(groups, feedback, pairs)
    assert sides(found) == [(0, 0, 1)]
    assert found.counts["unknown"] == 1


def test_a_seed_that_does_nothing_is_refused():
    with pytest.raises(ConfigError, match="seed is used where keep is 'drawn' but is 3"):
        Uncertainty(seed=3)
