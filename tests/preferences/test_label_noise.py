"""Labels that are turned round at a rate."""

from __future__ import annotations

from pyengine.preferences import Comparison, Feedback, Group, Preferences, Response
from pyengine.preferences.label_noise import with_flips


def groups(count):
    return [Group([g], [Response([1, g]), Response([2, g])]) for g in range(count)]


def pairs(count):
    return Preferences(groups(count), [Comparison(g, 0, 1, margin=1.5) for g in range(count)])


def test_about_the_rate_is_turned_and_never_by_the_company():
    data = pairs(400)
    noisy, turned = with_flips(data, 0.3, seed=0)
    flipped = [g for g, c in enumerate(noisy.comparisons) if c.winner == 1]
    assert turned == len(flipped)
    assert abs(turned - 120) < 3 * 9.2  # three standard deviations of 400 draws at 0.3
    assert all(c.margin == (-1.5 if c.winner == 1 else 1.5) for c in noisy.comparisons)
    half, _ = with_flips(pairs(200), 0.3, seed=0)
    assert half.comparisons == noisy.comparisons[:200]
    assert with_flips(data, 0.3, seed=1)[0].comparisons != noisy.comparisons


def test_a_pair_and_its_opposite_have_one_fate():
    data = pairs(50)
    other = Preferences(data.groups, [Comparison(c.group, 1, 0) for c in data.comparisons])
    one, two = (with_flips(each, 0.5, seed=3)[0].comparisons for each in (data, other))
    assert [c.winner for c in one] == [1 - c.winner for c in two]


def test_labels_are_turned_with_their_rewards():
    labels = [[True, False] for _ in range(100)]
    data = Preferences(groups(100), (), Feedback.from_labels(labels))
    noisy, turned = with_flips(data, 0.25, seed=0)
    assert noisy.feedback.rewards == [[float(x) for x in row] for row in noisy.feedback.labels]
    changed = sum(
        a != b
        for x, y in zip(noisy.feedback.labels, labels, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert 25 < changed == turned < 75


def test_no_rate_changes_nothing():
    data = pairs(5)
    assert with_flips(data, 0.0, seed=0) == (data, 0)
