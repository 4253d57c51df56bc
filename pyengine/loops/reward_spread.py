"""How a round's rewards are spread: prompts that teach nothing, and whether length is rewarded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyengine.preferences.feedback import Feedback
    from pyengine.preferences.groups import Group


def spread_metrics(groups: Sequence[Group], feedback: Feedback) -> dict[str, float | None]:
    """What the rewards of a round's prompts have in them to learn from.

    frac_reward_zero_std          of the prompts with two rewards or more the share whose rewards
                                  are all equal: neither a comparison nor an advantage comes of
                                  them. None without such a prompt
    objective/length_correlation  Pearson's correlation of reward and length in tokens over the
                                  policy's responses, both less their prompt's mean: whether of two
                                  answers to one prompt the longer one is rewarded. None where
                                  lengths or rewards are all equal
    """
    equal, lengths, rewards = [], list[float](), list[float]()
    for group, row in zip(groups, feedback.rewards, strict=True):
        known = [reward for reward in row if reward is not None]
        if len(known) > 1:
            equal.append(min(known) == max(known))
        own = [
            (len(response.token_ids), reward)
            for response, reward in zip(group.responses, row, strict=True)
            if reward is not None and response.origin in (None, "policy")
        ]
        lengths += _less_mean([float(length) for length, _ in own])
        rewards += _less_mean([reward for _, reward in own])
    return {
        "frac_reward_zero_std": sum(equal) / len(equal) if equal else None,
        "objective/length_correlation": _correlation(lengths, rewards),
    }


def _less_mean(values: Sequence[float]) -> list[float]:
    if not values or min(values) == max(values):
        return [0.0] * len(values)  # to the bit: a rounded mean is not their value
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of values whose means are 0."""
    x, y = _scaled(x), _scaled(y)
    size = math.sqrt(math.fsum(v * v for v in x) * math.fsum(v * v for v in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / size if size else None


def _scaled(values: Sequence[float]) -> Sequence[float]:
    """Over the largest of them, so that squares of large rewards stay finite."""
    largest = max(map(abs, values), default=0.0)
    return [value / largest for value in values] if largest else values
