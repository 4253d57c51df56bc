"""What a sampler asks of its source: rewards of what it has drawn so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyengine.errors import ConfigError

if TYPE_CHECKING:
    from pyengine.preferences.groups import Group
    from pyengine.preferences.sources.source import Source


def rewards_of(who: str, judge: Source | None, groups: Sequence[Group]) -> list[list[float | None]]:
    """[group][response]; None where the source abstained or failed.

    Raises ConfigError without a source.
    """
    if judge is None:
        raise ConfigError(f"[{who}] judge must be a source of rewards but is None")
    feedback = judge(groups)
    feedback.check_shape([len(group.responses) for group in groups])
    return feedback.rewards


def best_first(rewards: Sequence[float | None]) -> list[int]:
    """Places of those that have a reward, the largest first; of equals the one drawn first."""
    known = [(-reward, k) for k, reward in enumerate(rewards) if reward is not None]
    return [k for _, k in sorted(known)]
