"""Recipes that name a sampler and measures: broken off, they end with the same bits."""

from __future__ import annotations

import json

import pytest

from pyengine.engine import Engine
from pyengine.errors import ConfigError
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe

RECIPE = """\
loop: online
model: MODEL
dtype: float32
learning_rate: 1e-3
prompts: prompts.jsonl
reward: "rewards.py:reward"
objective: OBJECTIVE
pairing: all_pairs
sampling: {n: 3, max_tokens: 4, seed: 3}
rounds: 2
checkpoint_every: 1
eval: {prompts: prompts.jsonl, n: 2, metrics: METRICS}
"""
REWARDS = """\
def reward(completion_ids):
    return [sum(i * t for i, t in enumerate(ids, 1)) % 97 / 97 for ids in completion_ids]
"""


@pytest.fixture
def load(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    rows = [{"prompt": p, "answer": f" {p}."} for p in ("The sea", "A train")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARDS)

    def made(sampler, objective="dpo", metrics="[reward_kl, {name: pass_at_k, ks: [1, 2]}]"):
        text = RECIPE.replace("MODEL", str(tiny_model)).replace("OBJECTIVE", objective)
        text = text.replace("METRICS", metrics) + f"sampler: {sampler}\n"
        (tmp_path / "r.yaml").write_text(text)
        return load_recipe(tmp_path / "r.yaml")

    return made


def evaluations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith("eval/")} for row in rows]


def test_a_sampler_that_asks_the_judge_resumes_to_the_same_bits(load, tmp_path, monkeypatch):
    recipe = load("{name: rejection, beta: 0.2, keep: 2, max_draws: 9}")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runner.run(recipe, whole, allow_code=True)
    with monkeypatch.context() as patch:
        done, update = [], Engine.update

        def interrupted(engine, *args):
            if done:
                raise KeyboardInterrupt
            done.append(update(engine, *args))
            return done[-1]

        patch.setattr(Engine, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(recipe, cut, allow_code=True)
    runner.run(recipe, cut, allow_code=True, resume=True)
    written = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, cut)]
    assert written[0] == written[1]
    assert evaluations(whole) == evaluations(cut)
    before = evaluations(whole)[0]
    assert (before["eval/kl_k1"], before["eval/kl_k3"]) == (0.0, 0.0)  # still the reference
    assert 0 <= before["eval/pass@1"] <= before["eval/pass@2"] <= 1
    assert {"eval/pass@1_stderr", "eval/reward", "eval/reward_stderr"} <= set(before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{name: best_of_n, keep: 4}"], r"keep must be at most n \(3\) but is 4"),
        (["best_of_n"], r"comparisons but of \{1\} responses a prompt none is made"),
        (["pilaf"], "n must be even but is 3"),
        (["{name: gold, column: answer}", "grpo"], "grpo does not fit .*logprobs, one a token"),
        (["plain", "dpo", "[calibration]"], "calibration cannot be measured"),
        (["plain", "dpo", "[{name: pass_at_k, ks: [3]}]"], "cannot be measured of 2 samples"),
        (["plain", "dpo", "diversity"], "metrics must be a list of evaluations"),
        (["plain", "dpo", "[divrsity]"], "did you mean 'diversity'"),
    ],
)
def test_what_cannot_be_is_refused_before_loading(load, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(runner, "Engine", None)
    with pytest.raises(ConfigError, match=message):
        runner.run(load(*words), tmp_path / "run", allow_code=True)
