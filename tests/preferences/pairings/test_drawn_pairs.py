"""Pairings that draw: how often each pair comes, and that nothing else decides it."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import Feedback, Group, Response
from pyengine.preferences.pairings.boltzmann import Boltzmann
from pyengine.preferences.pairings.double_thompson import DoubleThompson
from pyengine.preferences.pairings.random_pairs import RandomPairs

MANY = 1200


def drawn(rule, rewards, many=MANY, **columns):
    """How often each pair comes in groups that differ in their prompt."""
    groups = [Group([i], [Response([10 + k]) for k in range(len(rewards))]) for i in range(many)]
    feedback = Feedback.from_rewards([rewards] * many)
    feedback.columns = {name: [column] * many for name, column in columns.items()}
    pairs = rule(groups, feedback)
    return Counter((c.winner, c.loser) for c in pairs.comparisons), pairs.counts


def within(count, chance, total=MANY):
    """Three standard deviations."""
    return abs(count - chance * total) < 3 * math.sqrt(total * chance * (1 - chance))


def test_random_pairs_are_even():
    found, counts = drawn(RandomPairs(), [0.0, 1.0, 2.0])
    assert set(found) == {(1, 0), (2, 0), (2, 1)}
    assert all(within(n, 1 / 3) for n in found.values())
    assert counts["capped"] == 2 * MANY
    found, counts = drawn(RandomPairs(pairs=5), [0.0, 1.0, 2.0], 10)
    assert sum(found.values()) == 30
    assert counts["capped"] == 0


@pytest.mark.parametrize("rule", [RandomPairs, Boltzmann, DoubleThompson])
def test_draws_depend_on_seed_and_tokens_alone(rule):
    rewards = [0.0, 1.0, 2.0, 3.0]
    groups = [Group([i], [Response([k]) for k in range(4)]) for i in range(20)]
    feedback = Feedback.from_rewards([rewards] * 20)
    feedback.columns = {"reward_std": [[9.0] * 4] * 20}

    def pairs(rule, groups):
        made = rule(groups, feedback).comparisons
        return {tuple(groups[c.group].prompt_ids): (c.winner, c.loser) for c in made}

    assert pairs(rule(), groups) == pairs(rule(), groups[::-1])
    assert pairs(rule(), groups) != pairs(rule(seed=1), groups)


def test_boltzmann_draws_by_the_softmax():
    """Weights 1, 1, 2: {0, 1} has chance 2 * 1/4 * 1/3 (a tie), others 1/4 * 2/3 + 1/2 * 1/2."""
    found, counts = drawn(Boltzmann(temperature=2.0), [0.0, 0.0, 2 * math.log(2)])
    assert within(counts["ties"], 1 / 6)
    assert set(found) == {(2, 0), (2, 1)}
    assert all(within(n, 5 / 12) for n in found.values())


def test_double_thompson_pairs_the_best_of_two_particles():
    """Particles a and b are for 0 and 1: that pair, and the rewards say who wins."""
    a, b, rewards = [3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    found, counts = drawn(DoubleThompson(particles=("a", "b")), rewards, 50, a=a, b=b)
    assert found == {(1, 0): 50}
    assert sum(counts.values()) == 0


def test_particles_that_agree_leave_the_other_side_to_chance():
    a = [0.0, 1.0, 3.0]
    found, counts = drawn(DoubleThompson(particles=("a", "b")), a, a=a, b=a)
    assert set(found) == {(2, 0), (2, 1)}
    assert all(within(n, 1 / 2) for n in found.values())
    assert counts["undivided"] == MANY


def test_normal_particles():
    """Two equal means far below a third: what is drawn is the third and, after tries, another."""
    means = [0.1, 0.0, 9.0]
    rule = DoubleThompson(tries=4)
    found, counts = drawn(rule, means, 200, reward_std=[1.0, 1.0, 1.0])
    assert counts["undivided"] == 200
    assert set(found) == {(2, 0), (2, 1)}
    found, counts = drawn(rule, means, 200, reward_std=[1.0, 1.0, 99.0])
    assert counts["undivided"] < 100
    assert found[0, 1] > 0


def test_what_double_thompson_needs():
    with pytest.raises(RequestError, match=r"needs 'reward_std' of every response .* are none"):
        drawn(DoubleThompson(), [0.0, 1.0], 1)
    found, counts = drawn(DoubleThompson(), [0.0, 1.0, 2.0], 1, reward_std=[1.0, None, 1.0])
    assert found == {(2, 0): 1}
    assert counts["unknown"] == 1
    with pytest.raises(ConfigError, match="particles must be a list of two different names"):
        DoubleThompson(particles=("a",))
