"""The row's own response beside samples."""

from __future__ import annotations

import pytest
from letters import LettersEngine

import pyengine as pe
from pyengine.errors import DataError
from pyengine.samplers.gold import Gold

PARAMS = pe.SamplingParams(n=2, max_tokens=3)


def test_gold_comes_last_and_ends():
    engine = LettersEngine()
    chat = [{"role": "user", "content": "hi"}]
    groups = Gold(column="best")(
        engine,
        ["x", chat, [7, 8]],
        PARAMS,
        [4, 5, 6],
        columns={"best": ["yes", "no", [9, 9]], "other": [1, 2, 3]},
    )
    golden = [group.responses[-1] for group in groups]
    assert [r.origin for r in groups[0].responses] == [None, None, "gold"]
    assert [r.token_ids for r in golden] == [[*map(ord, "yes"), 0], [*map(ord, "no"), 0], [9, 9]]
    assert [r.text for r in golden] == ["yes", "no", None]
    assert all(r.logprobs is None for r in golden)
    assert Gold().size(PARAMS) == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            None,
            "columns must have 'gold' with a response for each of 1 prompts but it is not there",
        ),
        ({"gold": ["a", "b"]}, "but it has 2"),
        ({"gold": [None]}, r"\[gold, prompt 0\] must be text but is None"),
        ({"gold": [""]}, "must be text but is ''"),
        ({"gold": ["a" * 400]}, r"must fit 400 positions with its prompt but both have 1 \+ 401"),
    ],
)
def test_rows_without_gold_are_refused_before_sampling(columns, message):
    engine = LettersEngine()
    with pytest.raises(DataError, match=message):
        Gold()(engine, ["x"], PARAMS, [0], columns=columns)
    assert engine.calls == []
