"""Pairing: who is compared with whom, and what is counted instead of compared."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import (
    AllPairs,
    BestWorst,
    Comparison,
    Feedback,
    Group,
    Preferences,
    Response,
)


def make(*rewards, tokens=None):
    """Groups whose responses all differ (unless `tokens` is given), and their feedback."""
    groups = [
        Group([1], [Response([10 + k] if tokens is None else tokens[k]) for k in range(len(row))])
        for row in rewards
    ]
    return groups, Feedback.from_rewards(rewards)


def pair(rule, *rewards, tokens=None):
    pairs = rule(*make(*rewards, tokens=tokens))
    # A margin is the user's: what rewards differ by is in the feedback already.
    assert all(c.margin is None for c in pairs.comparisons)
    return [
        (c.group, c.winner, c.loser, rewards[c.group][c.winner] - rewards[c.group][c.loser])
        for c in pairs.comparisons
    ], pairs.counts


def test_best_against_worst():
    found, counts = pair(BestWorst(), [0.5, 2.0, -1.0], [3.0, None, 1.0])
    assert found == [(0, 1, 2, 3.0), (1, 0, 2, 2.0)]
    assert counts == {"ties": 0, "equal": 0, "too_few": 0}


def test_first_of_equals():
    assert pair(BestWorst(), [1.0, 0.0, 1.0, 0.0])[0] == [(0, 0, 1, 1.0)]


def test_ties_make_no_pair():
    found, counts = pair(BestWorst(), [1.0, 1.0], [0.0, 2.0])
    assert found == [(1, 1, 0, 2.0)]
    assert counts["ties"] == 1


def test_margin_must_exceed_the_minimum():
    found, counts = pair(BestWorst(min_margin=1.0), [0.0, 1.0], [0.0, 1.5])
    assert found == [(1, 1, 0, 1.5)]
    assert counts["ties"] == 1


def test_groups_with_fewer_than_two_rewards():
    found, counts = pair(BestWorst(), [1.0, None], [None, None], [], [1.0])
    assert found == []
    assert counts["too_few"] == 4


def test_empty_response_is_never_compared():
    found, _ = pair(BestWorst(), [5.0, 1.0, 2.0], tokens=[[], [1], [2]])
    assert found == [(0, 2, 1, 1.0)]


def test_equal_tokens_are_never_compared():
    found, counts = pair(BestWorst(), [1.0, 0.0], tokens=[[7, 8], [7, 8]])
    assert found == []
    assert counts == {"ties": 0, "equal": 1, "too_few": 0}


def test_all_pairs_widest_first():
    found, counts = pair(AllPairs(), [1.0, 3.0, 0.0])
    assert found == [(0, 1, 2, 3.0), (0, 1, 0, 2.0), (0, 0, 2, 1.0)]
    assert counts == {"ties": 0, "equal": 0, "too_few": 0, "capped": 0}


def test_all_pairs_counts():
    found, counts = pair(AllPairs(max_pairs=1), [1.0, 1.0, 0.0], [None, 1.0])
    assert found == [(0, 0, 2, 1.0)]
    assert counts == {"ties": 1, "equal": 0, "too_few": 1, "capped": 1}
    found, counts = pair(AllPairs(), [1.0, 0.5, 0.0], tokens=[[1], [1], [2]])
    assert [f[1:3] for f in found] == [(0, 2), (1, 2)]
    assert counts["equal"] == 1


REWARDS = st.lists(
    st.lists(st.none() | st.sampled_from([0.0, 1.0]) | st.floats(-1e38, 1e38), max_size=5),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(
    REWARDS,
    st.sampled_from([0.0, 0.5]),
    st.lists(st.lists(st.integers(0, 2), max_size=2), min_size=5, max_size=5),
)
def test_invariants(rewards, min_margin, tokens):
    groups, feedback = make(*rewards, tokens=tokens)
    best = BestWorst(min_margin)(groups, feedback)
    every = AllPairs(min_margin)(groups, feedback)
    for c in (*best.comparisons, *every.comparisons):
        row = feedback.rewards[c.group]
        assert row[c.winner] - row[c.loser] > min_margin
        a, b = (groups[c.group].responses[k].token_ids for k in (c.winner, c.loser))
        assert a
        assert b
        assert a != b
    assert len(best.comparisons) + sum(best.counts.values()) == len(groups)
    widest = {c.group: c for c in reversed(every.comparisons)}
    for c in best.comparisons:
        row, wide = feedback.rewards[c.group], widest[c.group]
        assert row[c.winner] - row[c.loser] == row[wide.winner] - row[wide.loser]
    Preferences(groups, every.comparisons)  # accepts them all


@pytest.mark.parametrize("rule", [BestWorst, AllPairs])
def test_feedback_of_other_groups(rule):
    groups, _ = make([1.0, 2.0])
    with pytest.raises(RequestError, match=r"one reward per response, \[2\] a group, but has \[1"):
        rule()(groups, Feedback.from_rewards([[1.0]]))


@pytest.mark.parametrize("rule", [BestWorst, AllPairs])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_min_margin(rule, value):
    with pytest.raises(ConfigError, match=f"min_margin must be >= 0 and finite but is {value}"):
        rule(min_margin=value)


def test_bad_max_pairs():
    with pytest.raises(ConfigError, match="max_pairs must be an integer >= 1, or None but is 0"):
        AllPairs(max_pairs=0)


def test_comparison_defaults():
    assert BestWorst()(*make([1.0, 0.0])).comparisons == [Comparison(0, 0, 1, 1.0, None, 1.0)]
