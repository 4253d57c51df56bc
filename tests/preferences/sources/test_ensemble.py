"""Several sources as one: mean, worst case, a penalty on their spread, and sums."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pyengine.errors import ConfigError
from pyengine.preferences import Ensemble, Feedback, Gives, Group, Response, RewardFunction
from pyengine.preferences.sources.source import gives

GROUPS = [Group([1], [Response([k], text=str(k)) for k in range(4)])]


class Fixed:
    """A source of given rewards, which counts its calls."""

    def __init__(self, name: str, *rewards: float | None, errors: tuple[int, ...] = ()) -> None:
        self.name, self.rewards, self.failed = name, rewards, errors

    def __call__(self, groups: Any) -> Feedback:
        feedback = Feedback.from_rewards([list(self.rewards)])
        for k in self.failed:
            feedback.rewards[0][k], feedback.status[0][k] = None, "error"
            feedback.errors.append(f"[{self.name}] {k}")
        feedback.counts_by_name = {"calls": 2}
        return feedback


SOURCES = (
    Fixed("a", 1.0, 4.0, None, 0.0),
    Fixed("b", 2.0, 4.0, 1.0, 0.0, errors=(3,)),
    Fixed("c", 6.0, 4.0, 1.0, 0.0),
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 3.0),
        ({"combine": "min"}, 1.0),
        ({"combine": "mean_minus_variance"}, 3 - 14 / 3),
        ({"combine": "mean_minus_variance", "penalty": 0.5}, 3 - 7 / 3),
    ],
)
def test_rewards_of_several(fields: Any, expected: float) -> None:
    """Of 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3. What one source lacks, all lack."""
    feedback = Ensemble(SOURCES, **fields)(GROUPS)
    assert feedback.rewards == [[pytest.approx(expected), 4.0, None, None]]
    assert feedback.status == [["value", "value", "abstain", "error"]]
    [spread] = feedback.columns["reward_std"]
    assert spread == [pytest.approx(math.sqrt(14 / 3)), 0.0, None, None]
    assert feedback.components["b"] == [[2.0, 4.0, 1.0, None]]
    assert feedback.errors == ["[b] 3"]
    assert feedback.counts_by_name == {"calls": 6}


def test_sources_of_one_name_are_numbered_and_it_says_what_it_gives() -> None:
    def ten(completions: list[str]) -> list[float]:
        return [10.0] * len(completions)

    ensemble = Ensemble([RewardFunction(ten), RewardFunction(ten), SOURCES[2]])
    assert list(ensemble(GROUPS).components) == ["ten_1", "ten_2", "c"]
    assert gives(ensemble) == Gives(columns=("reward_std",))


@pytest.mark.parametrize(
    ("sources", "fields", "message"),
    [
        (SOURCES[:1], {}, "sources must be two or more but are 1"),
        (SOURCES, {"combine": "max"}, "combine must be one of mean, min, mean_minus_variance"),
        (SOURCES, {"penalty": 2.0}, "penalty is used where combine is 'mean_minus_variance'"),
        (SOURCES, {"penalty": -1.0}, "penalty must be >= 0 and finite, or None but is -1.0"),
    ],
)
def test_settings_of_ensembles(sources: Any, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Ensemble(sources, **fields)
    assert str(caught.value).startswith(f"[ensemble] {message}")
