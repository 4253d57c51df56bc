"""A preference model that grows with its labels: what it rewards, remembers and foresees."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.comparators.comparator import Compared
from pyengine.preferences.sources.refitted_head import RefittedHead
from pyengine.preferences.sources.token_guidance import TokenGuidance


class Ones:
    """Hidden states: how many tokens are 1, and how many are 2."""

    def hidden_states(self, groups, pool="last"):
        assert pool == "last"
        return [[state(r.token_ids) if r.token_ids else None for r in g.responses] for g in groups]


def state(ids):
    return torch.tensor([float(ids.count(1)), float(ids.count(2))])


class More:
    """Prefers more ones; of none of both it has no verdict."""

    def __init__(self):
        self.asked = []

    def compare(self, groups, duels):
        self.asked += duels
        found = []
        for g, i, j in duels:
            a, b = (groups[g].responses[k].token_ids.count(1) for k in (i, j))
            found.append(None if a == b == 0 else 0.5 if a == b else float(a > b))
        return Compared(found, counts={"calls": 1.0})


def group(*responses, prompt=(7,)):
    return Group(list(prompt), [Response(list(ids)) for ids in responses])


def made(**changes):
    return RefittedHead(**({"comparator": More(), "model": Ones(), "ridge": 1.0} | changes))


def test_one_label_by_hand():
    """(1, 1) against (2,): the difference (2, -1), scaled to length 1; label 1. Along it the loss
    is softplus(-z) + z^2 / 2, whose minimum is where sigmoid(-z) = z, at 0.401058. The rewards are
    z / sqrt 5 times (2, -1) . x: apart by z, and their mean is 0."""
    head = made()
    feedback = head([group([1, 1], [2])])
    z = 0.40105813754155
    assert 1 / (1 + math.exp(z)) == pytest.approx(z, abs=1e-12)
    assert feedback.rewards == [pytest.approx([z / 2, -z / 2])]
    assert feedback.preference_matrix == [[[None, 1.0], [0.0, None]]]
    assert feedback.counts_by_name == {"calls": 1.0, "labels": 1.0, "labels_known": 1.0}


def test_labels_are_remembered_when_they_are_taken_in():
    head, first = made(), [group([1, 1], [2])]
    told = head(first)
    again = head(first)
    assert again.counts_by_name["labels_known"] == 1.0  # a call alone remembers nothing
    on_file = Feedback.from_json(json.loads(json.dumps(told.to_json())))
    labels = head.labelled(first, on_file)
    assert labels == [[[7], [1, 1], [2], 1.0]]
    head.known.extend(labels)
    second = [group([1], [2, 2], prompt=(8,)), group([3], [4], prompt=(9,))]
    feedback = head(second)
    assert feedback.counts_by_name == {
        "calls": 1.0, "labels": 1.0, "labels_known": 2.0, "foreseen": 1.0,
    }  # fmt: skip
    other = made()
    other.known[:] = json.loads(json.dumps(labels))
    assert other(second).rewards == feedback.rewards  # what a resumed run knows
    rewards = feedback.rewards[0]
    assert rewards[0] > feedback.rewards[1][0] > rewards[1]
    assert sum(r for row in feedback.rewards for r in row) == pytest.approx(0.0)


def test_what_has_no_tokens_abstains_and_what_has_no_label_fails():
    head = made()
    feedback = head([group([3], [4], [])])
    assert feedback.status == [["error", "error", "abstain"]]
    assert "no pair has a label" in feedback.errors[-1]
    assert head([group([1], [])]).status == [["error", "abstain"]]  # one alone is no pair


def test_ties_leave_every_reward_zero():
    feedback = made()([group([1, 2], [2, 1])])
    assert feedback.rewards == [[0.0, 0.0]]


def test_pairs_are_drawn_by_content_and_equal_responses_are_none():
    head = made(labels=2)
    groups = [group([1], [2], [1], [1, 1]), group([1], [1])]
    head(groups)
    alone = made(labels=2)
    alone(groups[:1])
    asked = head.comparator.asked
    assert asked == alone.comparator.asked
    assert len(set(asked)) == 2
    assert (0, 0, 2) not in asked


class Tastes:
    """Whoever asks with an even token likes ones, the others like twos."""

    def compare(self, groups, duels):
        found = []
        for g, i, j in duels:
            liked = 1 + groups[g].prompt_ids[0] % 2
            a, b = (groups[g].responses[k].token_ids.count(liked) for k in (i, j))
            found.append(0.5 if a == b else float(a > b))
        return Compared(found)


def test_of_two_groups_the_one_that_is_worse_off_counts():
    """Four who like ones and two who like twos: all have labelled (1, 0) against (0, 1) and more.
    Now that the policy writes ones alone, twos are rewarded, and the other way round."""
    head = made(comparator=Tastes(), groups=2, labels=6)
    asked = [group([1], [2], [1, 1], [2, 2], prompt=(k,)) for k in (2, 4, 6, 8, 3, 5)]
    head.known.extend(head.labelled(asked, head(asked)))
    for written, rewarded, worst in (([1, 1, 1], 2, 1.0), ([2, 2, 2], 1, 0.0)):
        feedback = head([group([*written, 1], [*written, 2], prompt=(10,))] * 3)
        ones, twos = feedback.rewards[0]
        assert (1 if ones > twos else 2) == rewarded
        assert feedback.counts_by_name["worst_group"] == worst
        assert "foreseen" not in feedback.counts_by_name


class OfTokens:
    """Hidden states: a one-hot of each token, of 1 and 2."""

    def hidden_states(self, groups, pool="last"):
        assert pool == "tokens"
        return [
            [one_hot(r.token_ids) if r.token_ids else None for r in g.responses] for g in groups
        ]


def one_hot(ids):
    return torch.tensor([[float(t == 1), float(t == 2)] for t in ids])


def test_rewards_of_tokens_from_a_label_of_the_whole_by_hand():
    """(1, 2, 1) against (2, 2): the means differ by (2/3, -2/3). Scaled to length 1 the head is z
    along it, where sigmoid(-z) = z, as above; so the two are apart by z, and the head is (w, -w)
    with w 4/3 = z. Each token has its share of its response's mean."""
    head = TokenGuidance(More(), OfTokens(), ridge=1.0)
    groups = [group([1, 2, 1], [2, 2], [])]
    feedback = head(groups)
    z = 0.40105813754155
    [[first, second, none]] = feedback.rewards
    assert first - second == pytest.approx(z)
    assert none is None
    [[a, b, nothing]] = feedback.token_columns["token_rewards"]
    assert nothing is None
    assert (sum(a), sum(b)) == (pytest.approx(first), pytest.approx(second))
    w = z * 3 / 4
    assert a[0] - a[1] == pytest.approx(2 * w / 3)  # a one and a two of three tokens
    assert (a[0], b[0]) == (a[2], b[1])
    assert head.labelled(groups, feedback) == [[[7], [1, 2, 1], [2, 2], 1.0]]
