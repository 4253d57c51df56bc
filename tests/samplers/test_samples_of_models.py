"""Samplers that draw from several models, prompts and temperatures: who is asked what."""

from __future__ import annotations

import pytest
from letters import LettersEngine

import pyengine as pe
from pyengine.errors import ConfigError, RequestError
from pyengine.samplers.geometric_mixture import Mixture
from pyengine.samplers.guide_rollin import GuideRollin
from pyengine.samplers.pilaf import Pilaf
from pyengine.samplers.prompted_contrast import PromptedContrast
from pyengine.samplers.several_models import SeveralModels
from pyengine.samplers.temperatures import Temperatures

PARAMS = pe.SamplingParams(n=4, max_tokens=3)


def origins(group):
    return [r.origin for r in group.responses]


def test_a_mixture_stands_beside_the_policy():
    engine = LettersEngine()
    groups = Mixture(alpha=0.25, other="past")(engine, ["x", "y"], PARAMS, [4, 5])
    assert [(call.models, call.params[0].n) for call in engine.calls] == [
        ({"policy": 1.0}, 1),
        ({"policy": 0.75, "past": 0.25}, 3),
    ]
    assert engine.calls[0].ids == [4, 5]
    assert [origins(g) for g in groups] == [["policy", "mixture", "mixture", "mixture"]] * 2
    with pytest.raises(ConfigError, match=r"policy_samples must be less than n \(4\) but is 4"):
        Mixture(policy_samples=4)(engine, ["x"], PARAMS, [0])
    with pytest.raises(ConfigError, match="other must be 'reference' or a snapshot's name"):
        Mixture(other="policy")


def test_pilaf_tosses_a_coin_for_each_prompt():
    engine = LettersEngine()
    prompts = [f"p{i}" for i in range(400)]
    groups = Pilaf(beta=0.25)(engine, prompts, PARAMS, range(400))
    plain, plus, minus = engine.calls
    assert [g.prompt for g in groups] == prompts
    assert 160 < len(plain.ids) < 240  # 4 standard deviations
    assert (plus.models, minus.models) == (
        {"policy": 1.25, "reference": -0.25},
        {"policy": 0.75, "reference": 0.25},
    )
    assert plus.prompts == minus.prompts
    assert {p.n for p in plus.params} == {2}
    for i, group in enumerate(groups):
        moved = ["extrapolated"] * 2 + ["interpolated"] * 2
        assert origins(group) == (["policy"] * 4 if i in plain.ids else moved)
    # Another seed tosses other coins; the same ids elsewhere in a batch the same ones.
    again = LettersEngine()
    Pilaf(beta=0.25)(again, prompts[200:], PARAMS, range(200, 400))
    assert again.calls[0].ids == [i for i in plain.ids if i >= 200]
    other = LettersEngine()
    Pilaf()(other, prompts, pe.SamplingParams(n=4, max_tokens=3, seed=1), range(400))
    assert other.calls[0].ids != plain.ids
    with pytest.raises(ConfigError, match="n must be even but is 3"):
        Pilaf()(engine, ["x"], pe.SamplingParams(n=3), [0])


def test_several_models_keep_their_names_and_temperatures():
    engine = LettersEngine()
    sampler = SeveralModels(others={"reference": 2, "past": 1}, temperatures={"past": 0.7})
    [group] = sampler(engine, ["x"], PARAMS, [4])
    assert origins(group) == ["policy"] * 4 + ["past"] + ["reference"] * 2
    asked = [(call.models, call.params[0].n, call.params[0].temperature) for call in engine.calls]
    assert asked == [
        ({"policy": 1.0}, 4, 1.0),
        ({"past": 1.0}, 1, 0.7),
        ({"reference": 1.0}, 2, 1.0),
    ]
    assert sampler.size(PARAMS) == 7
    with pytest.raises(
        ConfigError, match=r"of models in others, \['reference'\], but one is of 'p"
    ):
        SeveralModels(temperatures={"past": 1.0})
    with pytest.raises(ConfigError, match="others must be a mapping of the names of other models"):
        SeveralModels(others={"policy": 1})


def test_temperatures_share_a_call():
    engine = LettersEngine()
    [group, _] = Temperatures(temperatures=[0.5, 1.5])(engine, ["x", "y"], PARAMS, [4, 5])
    [call] = engine.calls
    assert call.prompts == ["x", "y", "x", "y"]
    assert [p.temperature for p in call.params] == [0.5, 0.5, 1.5, 1.5]
    assert group.columns["temperatures"] == [0.5] * 4 + [1.5] * 4
    assert len(group.responses) == 8
    with pytest.raises(ConfigError, match="temperatures must be a list of different numbers >= 0"):
        Temperatures(temperatures=[1.0, 1.0])


CHAT = [{"role": "user", "content": "hi"}]
RULED = [{"role": "system", "content": "Be brief."}, *CHAT]


@pytest.mark.parametrize(
    ("place", "prompt", "shown"),
    [
        ("system", "hi", "GOODhi"),
        ("suffix", "hi", "hiGOOD"),
        ("system", CHAT, [{"role": "system", "content": "GOOD"}, *CHAT]),
        ("system", RULED, [{"role": "system", "content": "GOODBe brief."}, *CHAT]),
        ("suffix", RULED, [RULED[0], {"role": "user", "content": "hiGOOD"}]),
    ],
)
def test_contrast_adds_to_the_prompt_and_takes_it_away_again(place, prompt, shown):
    engine = LettersEngine()
    sampler = PromptedContrast(good="GOOD", bad="BAD", place=place)
    [group] = sampler(engine, [prompt], PARAMS, [4])
    [call] = engine.calls
    assert call.prompts[0] == shown
    assert group.prompt == prompt
    assert group.prompt_ids == engine.tokenizer.encode_prompt(prompt)
    assert origins(group) == ["good", "good", "bad", "bad"]
    for response in group.responses:
        assert response.logprobs is None
        assert response.sampling_logprobs is not None


def test_contrast_is_refused_where_it_is_none():
    with pytest.raises(ConfigError, match="good must differ from bad but is 'a'"):
        PromptedContrast(good="a", bad="a")
    with pytest.raises(RequestError, match=r"\[prompted_contrast\] prompts\[1\] must be a text or"):
        PromptedContrast()(LettersEngine(), ["a", [1, 2]], PARAMS, [0, 1])


def test_the_guide_s_tokens_belong_to_the_prompt():
    """The guide writes abc ..., the policy goes on with what is left of max_tokens."""

    def write(prompt, request_id, sample, models):
        return "abcdefgh" if "past" in models else "vwxyz" * 2

    engine = LettersEngine(write)
    params = pe.SamplingParams(n=2, max_tokens=8)
    prompts = [f"p{i}" for i in range(300)]
    groups = GuideRollin(guide="past", max_tokens=3)(engine, prompts, params, range(300))
    lengths = [g.columns["guide_tokens"] for g in groups]
    for length in range(4):
        assert 45 < lengths.count(length) < 105  # uniform: 75 of each, 4 standard deviations
    for group, length, prompt in zip(groups, lengths, prompts, strict=True):
        assert group.prompt == prompt
        assert group.columns["guide"] == "abc"[:length]
        assert group.prompt_ids == engine.tokenizer.encode_prompt(prompt + "abc"[:length])
        assert {len(r.token_ids) for r in group.responses} == {8 - length}
    guide, policy = engine.calls
    assert guide.models == {"past": 1.0}
    assert [p.max_tokens for p in guide.params] == [n for n in lengths if n]
    assert policy.models == {"policy": 1.0}
    assert policy.ids == list(range(300))


def test_a_guide_that_ends_is_cut_before_its_end():
    engine = LettersEngine(lambda p, i, k, models: "a." if "reference" in models else "zzz")
    groups = GuideRollin(max_tokens=2)(engine, ["p"] * 20, PARAMS, range(20))
    assert {g.columns["guide"] for g in groups} == {"", "a"}
    assert all(0 not in g.prompt_ids for g in groups)


def test_some_prompts_have_no_guide():
    engine = LettersEngine()
    groups = GuideRollin(max_tokens=1, probability=0.25)(engine, ["p"] * 400, PARAMS, range(400))
    guided = sum(g.columns["guide_tokens"] for g in groups)
    assert 23 < guided < 77  # a half of a quarter: 50
    with pytest.raises(ConfigError, match=r"max_tokens must be less than .* \(3\) but is 3"):
        GuideRollin(max_tokens=3)(engine, ["p"], PARAMS, [0])
