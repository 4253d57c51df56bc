"""Allocations: samples a prompt, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.errors import ConfigError, RequestError
from pyengine.preferences.allocations.allocation import PromptStats
from pyengine.preferences.allocations.available import ALLOCATIONS
from pyengine.preferences.allocations.difficulty import Difficulty
from pyengine.preferences.allocations.gvm import Gvm
from pyengine.preferences.allocations.uniform import Uniform
from pyengine.preferences.allocations.until_k_correct import UntilKCorrect


def stats(*pairs, norm=1.0):
    return [PromptStats(tried, correct, norm) for tried, correct in pairs]


def test_uniform():
    assert Uniform()(stats((0, 0), (1, 0), (2, 2)), 7) == [3, 2, 2]
    assert Uniform()([], 7) == []


def test_until_k_correct():
    """Missing 2 but tried 10 of 10; 3; 4; 4 but one trial left; none. Then half of that."""
    known = stats((10, 2), (3, 1), (0, 0), (9, 0), (8, 5))
    rule = UntilKCorrect(k=4, cap=10)
    assert rule(known, 100) == [0, 3, 4, 1, 0]
    assert rule(known, 4) == [0, 2, 2, 0, 0]  # 1.5, 2, 0.5: the earlier half is rounded up
    assert UntilKCorrect(k=4, cap=10, per_missing=2)(known, 100) == [0, 6, 8, 1, 0]


def test_difficulty():
    """Failed 0.9, 0.5 and 0: 4 correct ones wanted, 4 * 5 / 9 = 2.2 and 0; 1, 1 and 1 are there."""
    rule = Difficulty(k=4, cap=100)
    assert rule(stats((10, 1), (2, 1), (1, 1)), 100) == [3, 1, 0]
    assert rule(stats((2, 2), (3, 3)), 100) == [0, 0]
    assert Difficulty(k=4, cap=11)(stats((10, 1), (2, 1)), 100) == [1, 1]


def test_gvm():
    """p = 0.5: 1 / sqrt(0.502) = 1.411; p = 0.1 and 0.01: 1 / sqrt(0.11) = 3.015; p = 0: none.
    Of 100: 18.97, 40.52, 40.52."""
    assert Gvm()(stats((2, 1), (10, 1), (100, 1), (8, 0)), 100) == [19, 41, 40, 0]
    assert Gvm()(stats((8, 0), (8, 0)), 100) == [0, 0]
    # Twice the gradient, twice the samples.
    assert Gvm()([PromptStats(2, 1, 2.0), PromptStats(2, 1, 1.0)], 9) == [6, 3]


def test_what_is_not_known_is_asked_for():
    for name in ("gvm", "difficulty"):
        with pytest.raises(RequestError, match=rf"\[{name}\] stats\[1\] must have tried >= 1"):
            ALLOCATIONS.make(name)(stats((1, 1), (0, 0)), 10)
    with pytest.raises(RequestError, match=r"stats\[0\].gradient_norm must be a finite number"):
        Gvm()(stats((2, 1), norm=None), 10)
    assert Gvm()([PromptStats(2, 0), PromptStats(2, 1, 1.0)], 3) == [0, 3]  # no norm, no need
    with pytest.raises(ConfigError, match=r"beta must be in \[1, 10\] but is 0.5"):
        Gvm(beta=0.5)


TRIED = st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@settings(max_examples=100, deadline=None)
@given(st.lists(TRIED, min_size=1, max_size=8), st.integers(0, 200))
def test_budgets_are_kept(pairs, budget):
    known = stats(*pairs)
    for name in ALLOCATIONS.names():
        found = ALLOCATIONS.make(name)(known, budget)
        assert len(found) == len(known)
        assert min(found) >= 0
        assert sum(found) <= budget
    assert sum(Uniform()(known, budget)) == budget
    assert sum(Gvm()(known, budget)) == (budget if any(s.correct for s in known) else 0)
