"""Every objective from a recipe: two rounds, broken off after the first, resumed to the same bits.

The others by name, refused with their reason before a model is loaded.
"""

from __future__ import annotations

import json
import os

import pytest

from pyengine import objectives
from pyengine.errors import ConfigError
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe

ENGINE = "model: MODEL\ndtype: float32\nlearning_rate: 1e-3\nobjective: OBJECTIVE\n"
ONLINE = (
    ENGINE
    + """\
prompts: prompts.jsonl
reward:
  function: rewards.py:reward
  label_threshold: 0.5
  bradley_terry_scale: 0.5
  columns: {safe: "rewards.py:safe", visits: "rewards.py:share", values: "rewards.py:share",
            target_logps: "rewards.py:share", greedy_rewards: "rewards.py:share",
            off_policy: "rewards.py:safe", weight: "rewards.py:share"}
  token_columns: {token_weight: "rewards.py:of_tokens", reward_mask: "rewards.py:of_tokens"}
sampling: {n: 3, max_tokens: 4, seed: 3}
pairing: all_pairs
rounds: 2
prompts_per_round: 2
"""
)
OFFLINE = ENGINE + "loop: offline\ndata: {file: DATA.jsonl}\nbatch_size: SIZE\n"
REWARDS = """\
def share(completion_ids):
    return [(sum(i * t for i, t in enumerate(ids, 1)) % 97 + 1) / 99 for ids in completion_ids]
def reward(completion_ids):
    return share([[t + 1 for t in ids] for ids in completion_ids])
def of_tokens(completion_ids):
    return [[(t % 7 + 1) / 8 for t in ids] for ids in completion_ids]
def safe(completion_ids):
    return [float(x > 0.5) for x in share(completion_ids)]
"""
ROWS = {
    "pairs": [{"prompt": w, "chosen": f" {w}.", "rejected": " no!"} for w in ("a", "b", "c", "d")],
    "kto": [{"prompt": w, "completion": f" {w}{s}", "label": s == "."} for w in "ab" for s in ".!"],
    "ranked": [
        {"prompt": w, "completions": [".", f" {w}", "!!"], "scores": [0.1 * i, 0.5, 0.2]}
        for i, w in enumerate("abcd")
    ],
}
# What these recipes do not give: further responses of a comparison, which a pairing would have to
# pick. Rows have them by `auxiliary:`, batches built by hand too.
NO_RECIPE = {
    "dpo_degree": "needs the chosen_degree response",
    "dpo_rationale": "needs the rationale response",
    "slic": "needs the reg response",
    "srpo": "needs the chosen_from_rejected response",
    "xpo": "needs the explore response",
}
# Rows of these kinds give an objective all it needs: a few of each unit and each way to the loss.
OFFLINE_RUNS = [
    *(("pairs", name, 2) for name in ("dpo", "ipo", "orpo", "simpo", "tdpo", "ld_dpo")),
    *(("kto", name, 2) for name in ("kto", "bco", "pmpo", "unlikelihood", "nll")),
    *(("ranked", name, 2) for name in ("infonca", "plackett_luce", "lipo_lambda")),
    ("ranked", "reinforce", 6),
]


class BrokenOffError(Exception):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody cuts the power of this test
    rows = {"prompts": [{"prompt": p} for p in ("The sea", "A train", "Bread")], **ROWS}
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def recipe_of(folder, text, model, name):
    text = text.replace("MODEL", str(model)).replace("OBJECTIVE", name)
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml")


def check(folder, recipe):
    """An uninterrupted run, and one broken off after round 1 and resumed."""

    def break_off(row):
        if row["round"] == 1:
            raise BrokenOffError

    whole, cut = folder / "whole", folder / "cut"
    result = runner.run(recipe, whole, allow_code=True)
    assert (result.rounds, result.steps) == (2, 2)
    with pytest.raises(BrokenOffError):
        runner.run(recipe, cut, allow_code=True, on_report=break_off)
    assert [p.name for p in (cut / "checkpoints").iterdir()] == ["step-1"]
    runner.run(recipe, cut, allow_code=True, resume=True)
    for name in ("model.safetensors", "config.json"):
        assert (cut / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert rows(cut) == rows(whole)
    assert all(row["grad_norm"] > 0 and row["skipped"] == 0 for row in rows(whole)[-2:])


def rows(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "tokens_per_s"))}
        for line in lines
    ]


@pytest.mark.parametrize("name", [n for n in objectives.available() if n not in NO_RECIPE])
def test_online(folder, tiny_model, name):
    check(folder, recipe_of(folder, ONLINE, tiny_model, name))


@pytest.mark.parametrize(("data", "name", "batch_size"), OFFLINE_RUNS)
def test_offline(folder, tiny_model, data, name, batch_size):
    text = OFFLINE.replace("DATA", data).replace("SIZE", str(batch_size))
    check(folder, recipe_of(folder, text, tiny_model, name))


@pytest.mark.parametrize(("name", "reason"), NO_RECIPE.items())
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (ONLINE, r"\[loop\] {} does not fit source \w+ and pairing all_pairs"),
        (OFFLINE.replace("DATA", "pairs"), r"\[offline\] {} does not fit rows of kind preference"),
    ],
    ids=["online", "offline"],
)
def test_what_no_recipe_gives_is_refused_before_a_model_is_loaded(
    folder, tiny_model, monkeypatch, name, reason, text, parts
):
    monkeypatch.setattr(runner, "Engine", None)
    recipe = recipe_of(folder, text.replace("SIZE", "2"), tiny_model, name)
    with pytest.raises(ConfigError, match=f"{parts.format(name)}: .*{reason}"):
        runner.run(recipe, folder / "run", allow_code=True)
    assert not (folder / "run").exists()
