"""Selections by likeness: duplicates, near duplicates, and the most different comparisons."""

from __future__ import annotations

import pytest
import torch

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import Comparison, Feedback, Group, Pairs, Response
from pyengine.preferences.selections.dedupe import Dedupe
from pyengine.preferences.selections.diversity import Diversity
from pyengine.preferences.selections.near_duplicates import NearDuplicates


def setting(tokens, pairs, prompts=((1,),)):
    groups = [Group(list(p), [Response(list(ids)) for ids in tokens]) for p in prompts]
    rewards = Feedback.from_rewards([[0.0] * len(tokens)] * len(groups))
    return groups, rewards, Pairs([Comparison(*p) for p in pairs])


def sides(pairs):
    return [(c.group, c.winner, c.loser) for c in pairs.comparisons]


def test_each_comparison_once():
    """Responses 0 and 1 have the same tokens, and so have prompts 0 and 1; prompt 2 is another."""
    pairs = [(0, 0, 2), (0, 1, 2), (0, 3, 2), (1, 0, 2), (2, 0, 2)]
    given = setting([[5], [5], [6], [7]], pairs, prompts=((1,), (1,), (2,)))
    found = Dedupe()(*given)
    assert sides(found) == [(0, 0, 2), (0, 3, 2), (2, 0, 2)]
    assert found.counts == {"duplicates": 2}
    assert sides(Dedupe(sides="rejected")(*given)) == [(0, 0, 2), (2, 0, 2)]


def test_each_final_answer_once():
    """Answers 1, 1, 2, none: (0, 2) and (1, 2) are alike, (0, 1) has one answer only."""
    pairs = [(0, 0, 2), (0, 1, 2), (0, 0, 1), (0, 3, 2)]
    groups, feedback, given = setting([[5], [6], [7], [8]], pairs)
    feedback.columns = {"answer": [[1.0, 1.0, 2.0, None]]}
    found = Dedupe(column="answer")(groups, feedback, given)
    assert sides(found) == [(0, 0, 2)]
    assert found.counts == {"duplicates": 1, "same_answer": 1, "unknown": 1}


# By runs of two: the first two share 12 and 23 of 12, 23, 34, 35; the others share none.
TOKENS = [[1, 2, 3, 4], [1, 2, 3, 5], [9, 8, 7, 6], [20, 21]]


def test_near_duplicates_within_a_pair_and_among_pairs():
    given = setting(TOKENS, [(0, 0, 1), (0, 0, 2), (0, 1, 2)])
    assert sides(NearDuplicates(n=2, threshold=0.5)(*given)) == [(0, 0, 2), (0, 1, 2)]
    assert len(NearDuplicates(n=2, threshold=0.51)(*given).comparisons) == 3
    found = NearDuplicates(n=2, threshold=0.5, sides="chosen")(*given)
    assert sides(found) == [(0, 0, 1)]  # chosen 0 again, and 1, which is like it
    assert found.counts == {"near_duplicates": 2}
    rejected = NearDuplicates(n=2, threshold=0.5, sides="rejected")(*given)
    assert sides(rejected) == [(0, 0, 1), (0, 0, 2)]


def test_the_comparison_furthest_from_those_kept():
    """Chosen responses are 1 - 1/2 and 1 apart from the first one, rejected ones the same."""
    given = setting(TOKENS, [(0, 0, 3), (0, 1, 3), (0, 2, 3)])
    found = Diversity(n=2)(*given)
    assert sides(found) == [(0, 0, 3), (0, 2, 3)]
    assert found.counts == {"over_budget": 1}
    assert len(Diversity(n=2, quota=3)(*given).comparisons) == 3


def test_distances_by_vectors():
    """Directions of 0 and 2 are the same, that of 1 is at a right angle; a zero has none."""
    vectors = [[[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]
    given = setting([*TOKENS, [30]], [(0, 0, 3), (0, 1, 3), (0, 2, 3), (0, 4, 3)])
    found = Diversity(vectors=lambda groups: vectors)(*given)
    assert sides(found) == [(0, 0, 3), (0, 1, 3)]
    assert found.counts == {"over_budget": 1, "unknown": 1}


def test_distances_by_a_model_s_hidden_states():
    """As above: of a model that is asked for the mean; nothing is asked on made-up rounds."""

    class Directions:
        def hidden_states(self, groups, pool):
            assert pool == "mean"
            return [[torch.tensor(v) for v in ([1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [1.0, 1.0])]]

    given = setting(TOKENS, [(0, 0, 3), (0, 2, 3), (0, 1, 3)])
    selection = Diversity(model=Directions(), pool="mean")
    assert sides(selection(*given)) == [(0, 0, 3), (0, 1, 3)]
    assert selection.rehearsal == Diversity()
    with pytest.raises(ConfigError, match="one of model and vectors must be None"):
        Diversity(model="policy", vectors="hidden")
    with pytest.raises(ConfigError, match="pool is used with a model but is 'mean' without one"):
        Diversity(pool="mean")
    with pytest.raises(ConfigError, match="model must be a model but is the name 'policy'"):
        Diversity(model="policy")(*given)


def test_vectors_are_checked():
    given = setting(TOKENS, [(0, 0, 3)])
    with pytest.raises(RequestError, match=r"for each of \[4\] responses a group but gave \[1\]"):
        Diversity(vectors=lambda groups: [[[1.0]]])(*given)
    with pytest.raises(RequestError, match=r"one length but have \[1, 2\] numbers"):
        Diversity(vectors=lambda groups: [[[1.0], [1.0, 0.0], None, None]])(*given)
    with pytest.raises(ConfigError, match="vectors must be a function but is the name 'hidden'"):
        Diversity(vectors="hidden")(*given)
    with pytest.raises(ConfigError, match="n is used without vectors but is 2 with them"):
        Diversity(n=2, vectors="hidden")
