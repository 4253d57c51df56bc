"""Several models in lock step, drawn from by their combined logits, beside transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_batches import random_ids
from transformers import PreTrainedModel
from transformers_oracle import LOGPROB_ATOL, load, processed, response_logits

import pyengine as pe
from pyengine.errors import RequestError

PROMPTS = [random_ids(length, seed=length) for length in (5, 1, 17)]


@pytest.fixture
def both(trained: pe.Engine, tiny_model: Path, tmp_path: Path):
    """An updated engine, and transformers' policy and reference."""
    trained.save_pretrained(tmp_path / "policy")
    return trained, {"policy": load(tmp_path / "policy"), "reference": load(tiny_model)}


Mixed = Callable[[list[int], list[int]], torch.Tensor]


def mixer(models: dict[str, PreTrainedModel], mix: dict[str, float]) -> Mixed:
    def mixed(prompt: list[int], ids: list[int]) -> torch.Tensor:
        rows = [c * response_logits(models[name], prompt, ids) for name, c in mix.items()]
        return torch.stack(rows).sum(0)

    return mixed


MIXTURES = [
    {"policy": 0.5, "reference": 0.5},
    {"policy": 1.5, "reference": -0.5},
    {"reference": 0.25, "policy": 0.75},
    {"reference": 1.0},
    {"policy": 2.0},
]


@pytest.mark.parametrize("mix", MIXTURES, ids=str)
def test_a_mixture_draws_from_the_combined_logits(both, mix):
    engine, models = both
    mixed = mixer(models, mix)
    params = pe.SamplingParams(temperature=0, max_tokens=20)
    for group in engine.generate(PROMPTS, params, models=mix):
        [response] = group.responses
        best = mixed(group.prompt_ids, response.token_ids).argmax(1)
        assert response.token_ids == best.tolist()
    params = pe.SamplingParams(n=3, max_tokens=10)
    for group in engine.generate(PROMPTS, params, models=mix):
        for r in group.responses:
            ids = torch.tensor(r.token_ids)[:, None]
            expected = mixed(group.prompt_ids, r.token_ids).log_softmax(1).gather(1, ids)[:, 0]
            assert r.sampling_logprobs == pytest.approx(expected.tolist(), abs=LOGPROB_ATOL)


def test_the_mixture_is_no_model_of_its_own(both):
    """Some greedy responses under both differ from those under either."""
    engine, _ = both
    params = pe.SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    names = ({"policy": 0.5, "reference": 0.5}, {"policy": 1.0}, {"reference": 1.0})
    drawn = [engine.generate(PROMPTS, params, models=mix) for mix in names]
    tokens = [[g.responses[0].token_ids for g in groups] for groups in drawn]
    assert tokens[0] != tokens[1] != tokens[2] != tokens[0]
    assert engine.generate(PROMPTS, params) == drawn[1]


def test_log_probs_under_a_mixture_are_each_models_own_to_the_bit(both):
    engine, _ = both
    params = pe.SamplingParams(n=3, max_tokens=10, temperature=0.9, top_p=0.9, entropy=True)
    mix = {"reference": 0.5, "policy": 0.5}
    groups = engine.generate(PROMPTS, params, models=mix)
    scores = {name: engine.score(groups, model=name) for name in mix}
    for g, group in enumerate(groups):
        for k, r in enumerate(group.responses):
            assert list(r.model_logprobs) == ["reference", "policy"]
            for name, scored in scores.items():
                assert r.model_logprobs[name] == scored[g][k].token_logprobs.tolist()
            assert r.logprobs == r.model_logprobs["reference"]  # the first
            assert r.model_logprobs["policy"] != r.model_logprobs["reference"]
            assert len(r.entropy) == len(r.token_ids)


def test_changes_act_on_the_combined_logits(both):
    engine, models = both
    mix = {"policy": 0.5, "reference": 0.5}
    mixed = mixer(models, mix)
    params = pe.SamplingParams(
        temperature=0,
        max_tokens=16,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={7: 2.0, 11: -math.inf, 2: 3.0},
        min_tokens=4,
    )
    for group in engine.generate(PROMPTS, params, models=mix):
        ids = group.responses[0].token_ids
        for i, logits in enumerate(mixed(group.prompt_ids, ids)):
            scores = processed(logits, params, group.prompt_ids, ids[:i], [2])
            assert ids[i] == int(scores.argmax())


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"other": 1.0}, "model must be 'policy' or 'reference' but is 'other'"),
        ({"policy": 1, 5: 1}, "model must be 'policy' or 'reference' but is 5"),
        *[
            ({"policy": c}, f"models['policy'] must be in [-1e30, 1e30] but is {c!r}")
            for c in (math.nan, math.inf, 1e31, -(10**400), "1", None, True)
        ],
        *[
            (bad, "models must map names to coefficients, such as {'policy': 0.5, 'reference': 0.")
            for bad in ({}, ["policy"], "policy", 5)
        ],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_models_that_cannot_be_mixed(engine, models, message):
    with pytest.raises(RequestError) as caught:
        engine.generate([[5]], models=models)
    assert str(caught.value).startswith(f"[generate] {message}")


def test_a_mixture_needs_the_reference(make_engine):
    engine = make_engine(reference="none")
    with pytest.raises(RequestError) as caught:
        engine.generate([[5]], models={"policy": 0.5, "reference": 0.5})
    assert str(caught.value) == (
        "[generate] model 'reference' was asked for but the engine has none (reference='none')"
    )
