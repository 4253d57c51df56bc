"""What holds for every sampler on a real engine: prompts apart, no draw twice, prompts once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pyengine as pe
from pyengine.preferences import RewardFunction
from pyengine.samplers.available import SAMPLERS

PARAMS = pe.SamplingParams(n=4, max_tokens=8, seed=3)
PROMPTS = ["Say what a good answer to all of this would be, please. ", "And then?"]
ANSWERS = ["It depends.", "Then nothing."]
OPTIONS = {
    "balanced": {"temperatures": [0.5], "thresholds": [99.0]},
    "beam_steps": {"step_tokens": 3},
    "best_of_n": {"keep": 2},
    "dialogue": {"turns": 2, "user_tokens": 6},
    "gold": {"column": "answer"},
    "guide_rollin": {"max_tokens": 5},
    "mixture": {"alpha": 0.5},
    "refine_chain": {"critique_tokens": 6},
    "rejection": {"beta": 0.3, "keep": 3, "max_draws": 12, "steps": 2},
    "several_models": {"others": {"reference": 2}, "temperatures": {"reference": 0.5}},
    "teacher_on_failure": {"column": "answer", "above": 99.0},
    "temperatures": {"temperatures": [1.0, 0.5, 2.0]},
}
ONE_SAMPLE = {"beam_steps"}
CHATS = {"dialogue"}
TAKES_ANSWERS = {"by_knowledge", "gold", "teacher_on_failure"}


def vowels(completions):
    return [float(sum(c.count(v) for v in "aeiou")) for c in completions]


class Recording:
    """An engine that keeps the key of every draw and counts the rows that it computes."""

    def __init__(self, engine: pe.Engine) -> None:
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.max_positions = engine.max_positions
        self.draws: list[int] = []

    def generate(self, prompts, params, request_ids=None, **models):
        self.draws += request_ids
        return self.engine.generate(prompts, params, request_ids=request_ids, **models)

    def score(self, groups, model="policy"):
        return self.engine.score(groups, model)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> pe.Engine:
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the reference
        for weight in engine._network.decoder.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)
    return engine


def made(name: str):
    return SAMPLERS.make(name, **OPTIONS.get(name, {}))


def prompts_of(name: str) -> list:
    return [[{"role": "user", "content": p}] for p in PROMPTS] if name in CHATS else PROMPTS


def params_of(name: str) -> pe.SamplingParams:
    return pe.SamplingParams(n=1, max_tokens=8, seed=3) if name in ONE_SAMPLE else PARAMS


def run(name: str, asks, which):
    sampler = made(name)
    judge = RewardFunction(vowels) if sampler.needs_source else None
    more = {"columns": {"answer": [ANSWERS[i] for i in which]}} if name in TAKES_ANSWERS else {}
    prompts, ids = [prompts_of(name)[i] for i in which], [7 + i for i in which]
    return sampler(asks, prompts, params_of(name), ids, judge, **more)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_prompts_together_are_prompts_apart(engine: pe.Engine, name: str) -> None:
    asks = Recording(engine)
    both = run(name, asks, [0, 1])
    assert len(set(asks.draws)) == len(asks.draws)
    assert name != "rejection" or len(asks.draws) > 2  # more than one round
    assert both == run(name, engine, [0]) + run(name, engine, [1])
    shown = zip(both, prompts_of(name), strict=True)
    assert all(g.prompt[: len(prompt)] == prompt for g, prompt in shown)
    assert all(0 < len(g.responses) <= made(name).size(params_of(name)) for g in both)


@pytest.mark.parametrize("name", ["beam_steps", "guide_rollin", "mixture", "rejection"])
def test_log_probs_are_those_of_the_policy_for_the_group_s_prompt(
    engine: pe.Engine, name: str
) -> None:
    groups = run(name, engine, [0, 1])
    for group, scores in zip(groups, engine.score(groups), strict=True):
        for response, score in zip(group.responses, scores, strict=True):
            assert response.logprobs == score.token_logprobs.tolist()


def test_models_are_those_that_the_origin_says(engine: pe.Engine) -> None:
    groups = run("several_models", engine, [0, 1])
    assert [r.origin for r in groups[0].responses] == ["policy"] * 4 + ["reference"] * 2
    for model in ("policy", "reference"):
        for group, scores in zip(groups, engine.score(groups, model=model), strict=True):
            for response, score in zip(group.responses, scores, strict=True):
                same = response.logprobs == score.token_logprobs.tolist()
                assert same == (response.origin == model)


def computed_rows(engine: pe.Engine) -> int:
    return engine._inference.sampler.open({"policy": 1.0}, 1).statistics()["computed_rows"]


def test_a_prompt_is_computed_once(tiny_model: Path) -> None:
    """Each prompt once, and a row for every sampled token that another one follows."""
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", reference="none")
    seen = []

    def judge(groups):
        seen.extend(r for g in groups for r in g.responses)
        return RewardFunction(vowels)(groups)

    made("best_of_n")(engine, PROMPTS, PARAMS, [0, 1], judge=judge)
    prompts = sum(len(engine.tokenizer.encode_prompt(p)) for p in PROMPTS)
    assert computed_rows(engine) == prompts + sum(len(r.token_ids) - 1 for r in seen)


def test_temperatures_share_the_prompt_s_pages(tiny_model: Path) -> None:
    """Of 65 prompt tokens two pages of 32 are computed once, the token that is read each time."""
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", reference="none")
    params = pe.SamplingParams(n=2, max_tokens=4, ignore_eos=True)
    made("temperatures")(engine, ["x" * 65], params, [0])
    assert computed_rows(engine) == 65 + 1 + 1 + 3 * 2 * 3


def test_later_calls_find_the_pages_of_what_they_begin_with(tiny_model: Path) -> None:
    """Beams of 33 prompt tokens: the whole page is computed once, the rest at each step."""
    engine = pe.Engine.from_pretrained(tiny_model, dtype="float32", reference="none")
    params = pe.SamplingParams(n=1, max_tokens=9, ignore_eos=True)
    sampler = SAMPLERS.make("beam_steps", beams=1, expand=2, step_tokens=3)
    sampler(engine, ["x" * 33], params, [0], judge=RewardFunction(vowels))
    # A step's two samples share the rows of what is there, and have 2 of their own.
    assert computed_rows(engine) == (33 + 2 * 2) + (1 + 3 + 2 * 2) + (1 + 6 + 2 * 2)
