"""Responses that a rank tells the others: what comes back is what was sent, bit for bit."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import pyengine as pe
from pyengine.engine.infer.told_responses import heard, told

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False), st.floats(allow_nan=True), st.just(float("-inf"))
)


@st.composite
def responses(draw: st.DrawFn) -> pe.Response:
    size = draw(st.integers(0, 5))

    def numbers(of: int = size) -> list[float]:
        return draw(st.lists(NUMBERS, min_size=of, max_size=of))

    def maybe(value: Any) -> Any:
        return value if draw(st.booleans()) else None

    token = st.integers(0, 2**31)
    return pe.Response(
        draw(st.lists(token, min_size=size, max_size=size)),
        logprobs=maybe(numbers()),
        sampling_logprobs=maybe(numbers()),
        text=maybe(draw(st.sampled_from(["", " a", "\n\u00e9\U0001d6fc"]))),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort", None])),
        kept_mass=maybe(numbers()),
        entropy=maybe(numbers()),
        top_logprobs=maybe([[(draw(token), x) for x in numbers(2)] for _ in range(size)]),
        model_logprobs=maybe({"policy": numbers(), "a.b": numbers()}),
        origin=maybe("gold"),
    )


def bits(value: Any) -> Any:
    """Floats as their bits, so that NaN is NaN and -0 is not 0."""
    if isinstance(value, float):
        return struct.pack("d", value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(bits, value))
    return {k: bits(v) for k, v in value.items()} if isinstance(value, dict) else value


@given(st.lists(st.lists(responses(), max_size=3), max_size=4))
def test_all_of_it_comes_back(rows: list[list[pe.Response]]) -> None:
    found = heard(told(rows))
    assert [[bits(vars(r)) for r in row] for row in found] == [
        [bits(vars(r)) for r in row] for row in rows
    ]


def test_numbers_take_few_bytes(tiny_model) -> None:
    engine = pe.Engine.from_pretrained(tiny_model, reference="none", kv_tokens=4096)
    params = pe.SamplingParams(n=4, max_tokens=64, ignore_eos=True)
    [group] = engine.generate(["Say something."], params)
    data = told([group.responses])
    tokens = 4 * 64
    assert len(data) < 24 * tokens + 2000  # ids of 8, log-probs, sampling log-probs, kept mass of 4
    assert 2 * len(data) < len(json.dumps([vars(r) for r in group.responses]))
    assert heard(data) == [group.responses]
