"""Preferences refuses a comparison that cannot be learnt from, by index and value."""

from __future__ import annotations

import dataclasses

import pytest

from pyengine.errors import RequestError
from pyengine.preferences import Comparison, Group, Preferences, Response

GROUPS = [
    Group([1], [Response([2]), Response([3])]),
    Group([4], [Response([5]), Response([])]),
]


def test_iterates_over_comparisons():
    comparisons = [Comparison(0, 1, 0), Comparison(group=0, winner=0, loser=1, probability=0.7)]
    assert list(Preferences(GROUPS, comparisons)) == comparisons


def test_defaults():
    comparison = Comparison(group=0, winner=1, loser=0)
    assert (comparison.probability, comparison.margin, comparison.weight) == (1.0, None, 1.0)
    group, response = Group([1]), Response([2])
    assert (group.responses, group.prompt, group.columns) == ([], None, {})
    unknown = {f.name: getattr(response, f.name) for f in dataclasses.fields(response)}
    assert unknown.pop("token_ids") == [2]
    assert set(unknown.values()) == {None}


def test_responses_differ_in_what_is_known_of_their_tokens():
    known = {
        "kept_mass": [0.9],
        "entropy": [2.5],
        "top_logprobs": [[(2, -0.1), (7, -2.5)]],
        "model_logprobs": {"reference": [-0.2]},
    }
    response = Response([2], **known)
    assert Response(**dataclasses.asdict(response)) == response
    for name in known:
        assert dataclasses.replace(response, **{name: None}) != response


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (Comparison(2, 0, 1), "comparisons[1].group must be in [0, 2) but is 2"),
        (Comparison(-1, 0, 1), "comparisons[1].group must be in [0, 2) but is -1"),
        (Comparison(0, 2, 1), "comparisons[1].winner must be in [0, 2) for group 0 but is 2"),
        (Comparison(0, 0, -1), "comparisons[1].loser must be in [0, 2) for group 0 but is -1"),
        (Comparison(1, 0, 1), "comparisons[1].loser is response 1 of group 1, which has no tokens"),
        (Comparison(1, 1, 0), "comparisons[1].winner is response 1 of group 1, which has no tok"),
        (Comparison(0, 1, 1), "comparisons[1] compares response 1 with itself"),
        (Comparison(0, 0, 1, 1.5), "comparisons[1].probability must be in [0, 1] but is 1.5"),
        (
            Comparison(0, 0, 1, float("nan")),
            "comparisons[1].probability must be in [0, 1] but is nan",
        ),
        (
            Comparison(0, 0, 1, weight=-1.0),
            "comparisons[1].weight must be finite and >= 0 but is -1.0",
        ),
        (
            Comparison(0, 0, 1, weight=float("inf")),
            "comparisons[1].weight must be finite and >= 0 but is inf",
        ),
        (
            Comparison(0, 0, 1, weight=float("nan")),
            "comparisons[1].weight must be finite and >= 0 but is nan",
        ),
    ],
)
def test_refused(comparison, message):
    with pytest.raises(RequestError) as caught:
        Preferences(GROUPS, [Comparison(0, 0, 1), comparison])
    assert str(caught.value).startswith("[Preferences] ")
    assert message in str(caught.value)
