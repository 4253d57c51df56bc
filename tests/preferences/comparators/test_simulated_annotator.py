"""Simulated annotators: draws keyed by content, flips, noise, groups, votes."""

from __future__ import annotations

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.comparators.simulated_annotator import SimulatedAnnotator


def make(prompts, n=4):
    return [Group([7, p], [Response([p, k]) for k in range(n)]) for p in range(prompts)]


def larger(groups):
    """The last token is the reward."""
    return Feedback.from_rewards([[float(r.token_ids[-1]) for r in g.responses] for g in groups])


def smaller(groups):
    return Feedback.from_rewards([[-float(r.token_ids[-1]) for r in g.responses] for g in groups])


def every_pair(groups):
    return [
        (g, i, j)
        for g, group in enumerate(groups)
        for i in range(len(group.responses))
        for j in range(len(group.responses))
        if i != j
    ]


def test_without_noise_the_better_one_always_wins():
    groups = make(3)
    found = SimulatedAnnotator([larger]).compare(groups, every_pair(groups))
    assert found.probabilities == [float(i > j) for _, i, j in every_pair(groups)]


def test_a_pair_has_one_label_in_whatever_order_place_and_company():
    groups = make(6)
    noisy = SimulatedAnnotator([larger], flip_rate=0.3, temperature=1.0, annotators=5, seed=3)
    duels = every_pair(groups)
    label = dict(zip(duels, noisy.compare(groups, duels).probabilities, strict=True))
    assert all(label[g, i, j] == 1 - label[g, j, i] for g, i, j in duels)
    # Alone, with its responses the other way round, in a new comparator.
    again = SimulatedAnnotator([larger], flip_rate=0.3, temperature=1.0, annotators=5, seed=3)
    alone = [Group([7, 4], [Response([4, 3]), Response([4, 1])])]
    assert again.compare(alone, [(0, 0, 1)]).probabilities == [label[4, 3, 1]]
    other = SimulatedAnnotator([larger], flip_rate=0.3, temperature=1.0, annotators=5, seed=4)
    assert other.compare(groups, duels).probabilities != list(label.values())


def test_flips_are_as_many_as_said():
    """1,200 pairs at 25 %: 300 +- 15 (one standard deviation)."""
    groups = make(200)
    duels = [(g, i, j) for g, i, j in every_pair(groups) if i > j]
    found = SimulatedAnnotator([larger], flip_rate=0.25).compare(groups, duels)
    wrong = sum(p == 0 for p in found.probabilities)
    assert found.counts["flipped"] == wrong
    assert abs(wrong - 300) < 60


def test_noise_is_bradley_terrys():
    """A difference of 1 at temperature 1 is preferred with P = .731: 600 pairs, +- .018."""
    groups = make(200)
    duels = [(g, k + 1, k) for g in range(200) for k in range(3)]
    found = SimulatedAnnotator([larger], temperature=1.0).compare(groups, duels)
    assert abs(sum(found.probabilities) / 600 - 0.731) < 0.075


def test_prompts_are_split_among_annotators_of_both_groups():
    """Annotators 0 and 2 like large rewards, 1 and 3 small ones: each prompt has one opinion."""
    groups = make(40)
    duels = [(g, 1, 0) for g in range(40)] + [(g, 3, 2) for g in range(40)]
    found = SimulatedAnnotator([larger, smaller], annotators=4).compare(groups, duels)
    one, two = found.probabilities[:40], found.probabilities[40:]
    assert one == two
    assert 10 < sum(one) < 30


def test_votes_of_all_give_the_pools_opinion():
    """3 of 4 like large rewards."""
    groups = make(2)
    pool = SimulatedAnnotator([larger, larger, larger, smaller], annotators=4, votes=4)
    found = pool.compare(groups, [(0, 1, 0), (1, 0, 3)])
    assert found.probabilities == [0.75, 0.25]
    assert found.counts["votes"] == 8


def test_each_annotator_has_a_flip_rate_of_its_own():
    groups = make(60)
    pool = SimulatedAnnotator([larger], annotators=2, flip_rate=[0.0, 0.49])
    duels = [(g, i, j) for g, i, j in every_pair(groups) if i > j]
    labels = pool.compare(groups, duels).probabilities
    by_prompt = [labels[6 * g : 6 * g + 6] for g in range(60)]
    faultless = sum(row == [1.0] * 6 for row in by_prompt)
    assert 18 < faultless < 44  # half of the prompts, and hardly any of the other half


def test_small_differences_and_equal_responses_are_ties():
    groups = [Group([1], [Response([0]), Response([1]), Response([9]), Response([9])])]
    pool = SimulatedAnnotator([larger], margin=1.0, flip_rate=0.4)
    found = pool.compare(groups, [(0, 0, 1), (0, 2, 3)])
    assert found.probabilities == [0.5, 0.5]
    assert found.counts["ties"] == 2


def test_no_verdict_without_a_reward():
    def some(groups):
        return Feedback.from_rewards([[1.0, None]])

    found = SimulatedAnnotator([some]).compare(make(1, n=2), [(0, 0, 1)])
    assert found.probabilities == [None]


def test_pools_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="votes must be at most annotators, 2, but is 3"):
        SimulatedAnnotator([larger], annotators=2, votes=3)
    with pytest.raises(
        ConfigError, match=r"gold must be a list of at least one source but is \[\]"
    ):
        SimulatedAnnotator([])
    with pytest.raises(ConfigError, match="one number for each of the 3 annotators but has 2"):
        SimulatedAnnotator([larger], annotators=3, flip_rate=(0.1, 0.2))
    with pytest.raises(ConfigError, match=r"flip_rate must be in \[0, 0\.5\), or a list"):
        SimulatedAnnotator([larger], flip_rate=0.5)
