"""SamplingParams' messages, and draws against exact probabilities."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from types import MappingProxyType

import numpy as np
import pytest
import torch

from pyengine.engine.calls.sampling_params import Draw, SamplingParams, draw, truncate
from pyengine.errors import NonFiniteError, RequestError
from pyengine.ops import philox_uniform

INF = math.inf
LAST = 1 - 2.0**-53  # the largest uniform there is
DRAWS = 100_000


# SamplingParams


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *[("n", v, "an integer >= 1") for v in (0, -1, 1.0, True, "2", None)],
        *[
            ("temperature", v, "0 or in [1e-30, 1e30]")
            for v in (-1, math.nan, INF, 1e-31, 1e31, "1", None, True)
        ],
        *[("top_k", v, "an integer >= 0") for v in (-1, 1.5, False, None)],
        *[("top_p", v, "in (0, 1]") for v in (0, -0.1, 1.01, math.nan, "1", None)],
        *[("min_p", v, "in [0, 1]") for v in (-0.1, 1.01, math.nan, "0", None)],
        *[("max_tokens", v, "an integer >= 1") for v in (0, 2.0, None)],
        *[("stop", v, "non-empty strings") for v in ([""], "", [1], 5, None, b"x", [b"x"])],
        *[("stop_token_ids", v, "integers >= 0") for v in ([-1], [1.5], ["a"], 5, None, [True])],
        *[("ignore_eos", v, "True or False") for v in (1, None, "yes")],
        *[("seed", v, "an integer of 64 bits") for v in (2**63, -(2**63) - 1, 0.5, None, True)],
        *[
            ("repetition_penalty", v, "in [1e-30, 1e30]")
            for v in (0, -1.2, 1e-31, 1e31, INF, math.nan, "1", None, True)
        ],
        *[
            (field, v, "in [-1e30, 1e30]")
            for field in ("presence_penalty", "frequency_penalty")
            for v in (INF, -INF, 1.1e30, -(10**400), math.nan, "0", None, False)
        ],
        *[
            ("logit_bias", v, "a mapping of token ids to numbers")
            for v in (None, 5, [(5, 1.0)], "5=1", {5})
        ],
        *[
            ("min_tokens", v, "an integer from 0 to max_tokens (128)")
            for v in (-1, 129, 1.0, None, True)
        ],
        *[("top_logprobs", v, "an integer from 0 to 1000") for v in (-1, 1001, 2.0, None, True)],
        *[("entropy", v, "True or False") for v in (1, None, "yes")],
    ],
)
def test_params_name_field_and_value(field, value, rule):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    shown = ("",) if value == "" and field == "stop" else value
    assert str(caught.value) == f"[SamplingParams] {field} must be {rule} but is {shown!r}"


def test_params_take_their_bounds():
    params = SamplingParams(
        n=1,
        temperature=0,
        top_k=0,
        top_p=1,
        min_p=1,
        max_tokens=1,
        stop="ab",
        stop_token_ids=[0],
        seed=-(2**63),
    )
    assert params.stop == ("ab",)
    assert SamplingParams(temperature=1e-30, seed=2**63 - 1).seed == 2**63 - 1
    for low, high in ((1e-30, -1e30), (1e30, 1e30), (1, 0)):
        SamplingParams(repetition_penalty=low, presence_penalty=high, frequency_penalty=high)
    SamplingParams(min_tokens=7, max_tokens=7, top_logprobs=1000, entropy=True)
    assert SamplingParams(logit_bias={0: -INF, 9: 1e30, 3: -1e30}).logit_bias[0] == -INF


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        *[
            (
                {5: 1.0, v: 0.0},
                f"logit_bias must be a mapping of integers >= 0 but has the key {v!r}",
            )
            for v in (-1, "5", 1.0, None, True)
        ],
        *[
            ({5: 1.0, 7: v}, f"logit_bias[7] must be in [-1e30, 1e30] or -inf but is {v!r}")
            for v in (INF, math.nan, 1.1e30, 10**400, "1", None, True)
        ],
    ],
)
def test_logit_bias_names_the_token_and_its_value(bias, message):
    with pytest.raises(RequestError) as caught:
        SamplingParams(logit_bias=bias)
    assert str(caught.value) == f"[SamplingParams] {message}"


def test_logit_bias_is_a_copy_by_ascending_id():
    given = {7: 1, 3: -INF}
    params = SamplingParams(logit_bias=MappingProxyType(given))
    given[7] = math.nan
    assert list(params.logit_bias.items()) == [(3, -INF), (7, 1.0)]
    assert type(params.logit_bias[7]) is float


def test_params_with_a_bias_are_plain_data():
    params = SamplingParams(n=2, logit_bias={7: 1.5, 3: -INF}, stop=("a",))
    assert dataclasses.replace(params, n=3).logit_bias == params.logit_bias
    assert SamplingParams(**dataclasses.asdict(params)) == params
    assert copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(SamplingParams(n=2, logit_bias={3: -INF, 7: 1.5}, stop=("a",)))
    assert params != dataclasses.replace(params, logit_bias={7: 1.5})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1}, False),
        ({"top_logprobs": 5, "entropy": True, "max_tokens": 1}, False),
        ({"repetition_penalty": 1, "presence_penalty": 0, "logit_bias": {}}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": -0.5}, True),
        ({"frequency_penalty": 0.5}, True),
        ({"logit_bias": {0: -INF}}, True),
        ({"min_tokens": 1}, True),
    ],
)
def test_changes_logits(options, expected):
    assert SamplingParams(**options).changes_logits is expected


# Draws


def uniforms(count: int, seed: int) -> torch.Tensor:
    request = torch.arange(count)
    same = torch.zeros_like(request)
    return philox_uniform(same + seed, request, same, same)


def exact(logits: list[float], params: SamplingParams) -> np.ndarray:
    """The distribution by its definition, in float64, one step after the other."""
    z = np.array(logits, dtype=np.float64) / params.temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    order = np.lexsort((np.arange(len(p)), -p))  # likely first, of equals the lowest id
    kept = np.ones(len(p), dtype=bool)
    if params.top_k:
        kept[order[params.top_k :]] = False
        p = np.where(kept, p, 0) / p[kept].sum()
    if params.top_p < 1:
        before = 0.0
        for i in order:
            if before >= params.top_p:
                kept[i] = False
            before += p[i]
        p = np.where(kept, p, 0) / p[kept].sum()
    kept &= p >= params.min_p * p.max() * (1 - 1e-6)
    return np.where(kept, p, 0) / p[kept].sum()


def chi_square_limit(freedom: int) -> float:
    """What chi-square exceeds with probability 1e-4 (Wilson and Hilferty)."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + 3.719 * math.sqrt(a)) ** 3


LOGITS = [1.3, -0.2, 2.1, 0.0, -3.0, 0.7, 2.0, -INF, -1.1, 1.25]
CONFIGS = {
    "plain": {},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.4},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.15},
    "top_k top_p": {"top_k": 6, "top_p": 0.7},
    "hot top_k min_p": {"temperature": 1.7, "top_k": 7, "min_p": 0.2},
    "cold top_p min_p": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05},
    "all": {"temperature": 1.5, "top_k": 8, "top_p": 0.95, "min_p": 0.1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_follow_the_exact_distribution(name):
    params = SamplingParams(**CONFIGS[name])
    p = exact(LOGITS, params)
    drawn = draw(
        torch.tensor(LOGITS).expand(DRAWS, -1), params, uniforms(DRAWS, list(CONFIGS).index(name))
    )
    counts = np.bincount(drawn.token_ids.numpy(), minlength=len(p))
    assert counts[p == 0].sum() == 0  # nothing outside the kept set
    expected = DRAWS * p[p > 0]
    statistic = ((counts[p > 0] - expected) ** 2 / expected).sum()
    assert statistic < chi_square_limit(len(expected) - 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_sampling_logprobs_are_those_of_the_kept_set_and_logprobs_of_all(name):
    params = SamplingParams(**CONFIGS[name])
    drawn = draw(torch.tensor(LOGITS).expand(2000, -1), params, uniforms(2000, 7))
    with np.errstate(divide="ignore"):
        sampling = np.log(exact(LOGITS, params))[drawn.token_ids]
        raw = np.log(exact(LOGITS, SamplingParams()))[drawn.token_ids]
    np.testing.assert_allclose(drawn.sampling_logprobs, sampling, rtol=0, atol=1e-6)
    np.testing.assert_allclose(drawn.logprobs, raw, rtol=0, atol=1e-6)


def test_plain_sampling_has_one_log_prob():
    drawn = draw(torch.tensor(LOGITS).expand(500, -1), SamplingParams(), uniforms(500, 3))
    assert torch.equal(drawn.logprobs, drawn.sampling_logprobs)


def test_a_draw_depends_on_its_own_row_only():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 50, generator=generator) * 3
    u = uniforms(64, 1)
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)
    together = draw(logits, params, u)
    for i in range(64):
        alone = draw(logits[i : i + 1], params, u[i : i + 1])
        assert alone.token_ids.item() == together.token_ids[i].item()


def kept(logits: list[float], **options: float) -> list[int]:
    z = truncate(torch.tensor([logits]), SamplingParams(**options))[0]
    assert all(z[i] in (logits[i], -INF) for i in range(len(logits)))
    return [i for i in range(len(logits)) if z[i] > -INF]


@pytest.mark.parametrize(
    ("logits", "options", "expected"),
    [
        ([0.0, 3.0, 1.0, 2.0], {"top_k": 2}, [1, 3]),
        ([0.0, 3.0, 1.0, 2.0], {"top_k": 1}, [1]),
        ([0.0, 3.0, 1.0, 2.0], {"top_k": 4}, [0, 1, 2, 3]),
        ([0.0, 3.0, 1.0, 2.0], {"top_k": 99}, [0, 1, 2, 3]),
        # Of equals at the boundary, the lowest ids.
        ([1.0, 2.0, 1.0, 1.0], {"top_k": 2}, [0, 1]),
        ([1.0, 1.0, 1.0, 1.0], {"top_k": 3}, [0, 1, 2]),
        # Four of 1/4: 0.5 is reached by two, and anything more needs a third.
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.5}, [0, 1]),
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.51}, [0, 1, 2]),
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 0.25}, [0]),
        ([0.0, 0.0, 0.0, 0.0], {"top_p": 1e-9}, [0]),
        ([0.0, 9.0, 0.0, 0.0], {"top_p": 1e-9}, [1]),
        # What top_k kept is made to add up to 1 first: of 1/2 and 1/2, 0.5 is reached by one.
        ([0.0, 0.0, 0.0, 0.0], {"top_k": 2, "top_p": 0.5}, [0]),
        ([0.0, 1.0, 1.0, -1.0], {"min_p": 1.0}, [1, 2]),
        ([0.0, 1.0, 1.0, -1.0], {"min_p": math.exp(-1.5)}, [0, 1, 2]),
        ([0.0, 1.0, 1.0, -1.0], {"min_p": math.exp(-2.5)}, [0, 1, 2, 3]),
        ([0.0, -INF, 1.0, -INF], {"top_k": 3}, [0, 2]),
        ([0.0, -INF, 1.0, -INF], {"top_p": 0.999999}, [0, 2]),
        ([5.0], {"top_k": 1, "top_p": 0.1, "min_p": 1.0}, [0]),
    ],
)
def test_kept_sets(logits, options, expected):
    assert kept(logits, **options) == expected


def test_truncation_leaves_the_logits_alone():
    logits = torch.tensor([LOGITS])
    before = logits.clone()
    draw(logits, SamplingParams(top_k=2, top_p=0.5, min_p=0.1), uniforms(1, 0))
    assert torch.equal(logits, before)


def draw_one(logits: list[float], u: float = 0.5, **options: float) -> Draw:
    return draw(
        torch.tensor([logits]), SamplingParams(**options), torch.tensor([u], dtype=torch.float64)
    )


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0], [-1.0, -INF, -2.0, -0.5]])
    drawn = draw(logits, SamplingParams(temperature=0), torch.empty(3, dtype=torch.float64))
    assert drawn.token_ids.tolist() == [1, 0, 3]
    assert drawn.sampling_logprobs.tolist() == [0.0, 0.0, 0.0]
    expected = torch.log_softmax(logits, -1).gather(1, drawn.token_ids[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs, expected, rtol=0, atol=1e-6)


def test_inverse_cdf_by_hand():
    """Probabilities 1/4, 1/4, 1/2 add up to 1/4, 1/2, 1: the token is the first sum above u."""
    logits = [0.0, 0.0, math.log(2.0)]
    tokens = [draw_one(logits, u).token_ids.item() for u in (0.0, 0.24, 0.26, 0.49, 0.51, 0.99)]
    assert tokens == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_smallest_and_largest_uniform_stay_in_the_kept_set(options):
    possible = np.flatnonzero(exact(LOGITS, SamplingParams(**options)))
    assert draw_one(LOGITS, 0.0, **options).token_ids.item() == possible[0]
    assert draw_one(LOGITS, LAST, **options).token_ids.item() == possible[-1]


@pytest.mark.parametrize("u", [0.0, 0.5, LAST])
def test_tokens_of_probability_zero_at_the_ends_are_never_drawn(u):
    assert draw_one([-INF, -INF, 0.0, -INF], u).token_ids.item() == 2
    # exp(-200) underflows in float32: probability 0 here too.
    assert draw_one([-200.0, 0.0, -200.0], u).token_ids.item() == 1


@pytest.mark.parametrize("u", [0.0, 0.5, LAST])
def test_a_vocabulary_of_one(u):
    drawn = draw_one([-7.0], u, temperature=0.5, top_k=3, top_p=0.2)
    assert (drawn.token_ids.item(), drawn.logprobs.item(), drawn.sampling_logprobs.item()) == (
        0,
        0.0,
        0.0,
    )


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_in_the_limit(temperature):
    drawn = draw_one([3.0, 80.0, -90.0, 79.9], 0.3, temperature=temperature)
    assert drawn.token_ids.item() == 1
    assert drawn.sampling_logprobs.item() == 0.0


def test_a_huge_temperature_is_uniform_in_the_limit():
    drawn = draw_one([3.0, 80.0, -90.0, 79.9], 0.9, temperature=1e30)
    assert drawn.token_ids.item() == 3
    assert drawn.sampling_logprobs.item() == pytest.approx(-math.log(4), abs=1e-6)


@pytest.mark.parametrize("bad", [[0.0, math.nan], [0.0, INF], [-INF, -INF]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    with pytest.raises(NonFiniteError) as caught:
        draw_one(bad, temperature=temperature)
    assert (
        str(caught.value) == "[generate] logits must be finite but the weights give NaN or infinity"
    )
