"""Every loop from a recipe: two rounds, broken off within the second, resumed to the same bits.

Combinations that cannot be are refused before a model is loaded."""

from __future__ import annotations

import json
import os

import pytest

from pyengine.engine import Engine
from pyengine.errors import ConfigError, DataError
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe

COMMON = """\
model: MODEL
dtype: float32
learning_rate: 1e-3
prompts: prompts.jsonl
reward: {function: "rewards.py:reward", bradley_terry_scale: 0.5}
sampling: {n: 3, max_tokens: 4, seed: 3}
checkpoint_every: 1
"""
# loop and what is special -> recipe, updates a round (None: as many as there are samples for)
LOOPS = {
    "online": ("objective: dpo\nupdates_per_round: 2\nprompts_per_round: 2\n", 2),
    "online parts": (
        "sampler: {name: best_of_n, keep: 2}\nselection: {name: margin, keep: large, share: 0.5}\n",
        1,
    ),
    "iterative": (
        "objective: inpo\npairing: all_pairs\nreference_policy: last\nmomentum: 0.5\nepochs: 2\n"
        "batch_size: 5\n",
        4,
    ),
    "iterative split": ("objective: dpo\nsplit_prompts: true\nbatch_size: 1\n", 1),
    "self_play": ("objective: sppo\nepochs: 2\n", 2),
    "self_play mixture": ("objective: dpo\nopponent: mixture\nmixture: 0.25\nbatch_size: 2\n", 2),
    "self_play gold": (
        "objective: spin\ngold: answer\nopponent: uniform\npairing: gold_wins\nbatch_size: 5\n",
        2,
    ),
    "expert_iteration": ("best: 2\nstart: base\nbatch_size: 2\n", 3),
    "expert_iteration parts": (
        "allocation: {name: until_k_correct, k: 2, cap: 5}\naccepted_above: 0.5\nrounds: 3\n",
        None,
    ),
    "on_policy_rl": ("epochs: 2\nbatch_size: 2\n", 4),
    "two_player": ("mixture: 0.25\n", 1),
    "two_player parts": (
        "comparator: {name: by_reward, source: {name: function, function: 'rewards.py:reward'}}\n",
        1,
    ),
    "optimistic": ("objective: onpo\npairing: all_pairs\nbatch_size: 5\n", None),
    "online explores": (
        "objective: xpo\nsampler: {name: several_models, others: {reference: 1}}\n",
        1,
    ),
    "em": ("objective: pmpo\nreference_policy: last\nbatch_size: 3\n", 3),
    "return_conditioned": ("above: 0.5\nbatch_size: 3\n", None),
}
REWARDS = """\
from pathlib import Path
def reward(completion_ids):
    with open(Path(__file__).with_name("asked"), "a") as file:
        file.write("x")
    return [(sum(i * t for i, t in enumerate(ids, 1)) % 97 + 1) / 99 for ids in completion_ids]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody cuts the power of this test
    rows = [{"prompt": p, "answer": f" {p}."} for p in ("The sea", "A train", "Bread")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "asked").write_text("")
    return tmp_path


def recipe_of(folder, model, loop, text):
    rounds = "" if "rounds: " in text else "rounds: 2\n"
    text = f"loop: {loop}\n{COMMON.replace('MODEL', str(model))}{rounds}{text}"
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def rows(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "tokens_per_s"))}
        for line in lines
    ]


@pytest.mark.parametrize("case", LOOPS)
def test_a_run_that_was_broken_off_ends_with_the_same_bits(folder, tiny_model, monkeypatch, case):
    text, updates = LOOPS[case]
    recipe = recipe_of(folder, tiny_model, case.split()[0], text)
    whole, cut = folder / "whole", folder / "cut"
    result = runner.run(recipe, whole, allow_code=True)
    updates = updates or rows(whole)[1]["updates"]
    assert (result.rounds, result.steps > updates) == (recipe.rounds, True)
    asked = len((folder / "asked").read_text())
    with monkeypatch.context() as patch:  # within round 2, after its first update where it has more
        done, update = [], Engine.update

        def interrupted(engine, *args):
            if len(done) == updates + min(1, updates - 1):
                raise KeyboardInterrupt
            done.append(update(engine, *args))
            return done[-1]

        patch.setattr(Engine, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(recipe, cut, allow_code=True)
    assert [p.name for p in (cut / "checkpoints").iterdir()] == ["step-1"]
    runner.run(recipe, cut, allow_code=True, resume=True)
    for name in ("model.safetensors", "config.json"):
        assert (cut / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert rows(cut) == rows(whole)
    learned = [row for row in rows(whole)[1:] if row["updates"]]
    assert all(row["grad_norm"] > 0 and row["skipped"] == 0 for row in learned)
    # a verdict on file is not asked for again; given answers win without a judge
    assert (asked == 0) == ("gold" in case)
    assert len((folder / "asked").read_text()) == 2 * asked


@pytest.mark.parametrize(
    ("loop", "text", "message"),
    [
        ("expert_iteration", "objective: dpo\n", "dpo does not fit source .*makes none"),
        ("em", "objective: ipo\n", "ipo does not fit source .*the loop em makes none"),
        ("on_policy_rl", "objective: ppo\nbatch_size: 1\n", "normalises advantages over the whole"),
        ("iterative", "momentum: 0.5\nlora: {r: 2}\n", "momentum must be 0 where adapters are"),
        ("iterative", "split_prompts: true\nprompts_per_round: 2\n", "must not stand beside"),
        (
            "iterative",
            "objective: dpo\nreference_policy: none\n",
            "reference_policy must be one of initial, la",
        ),
        ("two_player", "engine: {reference: none}\n", "mixture must be 0 where the engine has no"),
        ("self_play", "gold: completion\n", r"gold must be one of the columns \(answer\)"),
        ("self_play", "opponent: mixture\n", "mixture must be > 0 with the opponent 'mixture'"),
        ("self_play", "sampler: best_of_n\n", "sampler must be a known key"),
        ("online", "objective: grpo\nsource: {name: by_origin}\n", "reward and source .*both do"),
        ("online", "epochs: 2\n", "epochs must be a known key"),
    ],
)
def test_what_does_not_go_together_is_refused_before_loading(
    folder, tiny_model, monkeypatch, loop, text, message
):
    monkeypatch.setattr(runner, "Engine", None)
    with pytest.raises(ConfigError, match=message):
        runner.run(recipe_of(folder, tiny_model, loop, text), folder / "run", allow_code=True)
    assert not (folder / "run").exists()


def test_a_given_answer_that_is_too_long_is_named_before_loading(folder, tiny_model, monkeypatch):
    monkeypatch.setattr(runner, "Engine", None)
    row = {"prompt": "The sea", "answer": "x" * 2000}
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    recipe = recipe_of(folder, tiny_model, "self_play", "objective: spin\ngold: answer\n")
    with pytest.raises(DataError, match=r"prompts.jsonl:1\] must fit 512 positions"):
        runner.run(recipe, folder / "run", allow_code=True)
