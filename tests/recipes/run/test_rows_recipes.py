"""What recipes over rows can say beside their objective: each run broken off and resumed."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from pyengine.errors import ConfigError
from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe

HEAD = "model: MODEL\ndtype: float32\nlearning_rate: 1e-3\ncheckpoint_every: 1\n"
PAIRS = [
    {
        "prompt": f"Say {w}",
        "chosen": f" {w}.",
        "rejected": " no!",
        "score_chosen": 0.9,
        "score_rejected": 0.1 * i,
        "best": f" {w} {w}.",
    }
    for i, w in enumerate("abcdef")
]
OFFLINE = {
    "slic": "objective: slic\nauxiliary: chosen_again\n",
    "slic target": "objective: slic\nauxiliary: {name: target, column: best}\n",
    "srpo": "objective: srpo\nauxiliary: revisions\n",
    "degrees": "objective: dpo_degree\nauxiliary: degrees\n",
    "mmpo": "objective: mmpo\ndata.response_columns: {scores: score}\n",
    "sparsepo": "objective: sparsepo\ntoken_columns: {reward_mask: reference_surprise}\n",
    "sft": "objective: nll\nreference: none\ndata.unpair: chosen\ndata.flip_rate: 0.0\n",
    "kto": "objective: kto\ndata.unpair: both\ndata.flip_rate: 0.4\n",
}
REWARD_MODELS = {
    "plain": "objective: {name: bradley_terry, center: 0.1}\n",
    "strength": "ensemble: 2\nepochs: 2\nbatch_size: 8\nstrength: {after: 1, flip: 0.5}\n",
    "gpm": "objective: gpm\noutputs: 4\n",
}


class BrokenOffError(Exception):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody cuts the power of this test
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "rewards.py").write_text(
        "def length(completions):\n    return [len(c) / 9 for c in completions]\n"
    )
    return tmp_path


def recipe_of(folder, model, loop, text):
    """Keys with a dot go below the mapping that they name, as --set's do."""
    lines = text.splitlines(keepends=True)
    plain = "".join(line for line in lines if not line.startswith("data."))
    changes = dict(line.strip().split(": ", 1) for line in lines if line.startswith("data."))
    body = (
        HEAD.replace("MODEL", str(model)) + f"loop: {loop}\ndata: {{file: pairs.jsonl}}\n" + plain
    )
    (folder / "recipe.yaml").write_text(body)
    return load_recipe(
        folder / "recipe.yaml", {key: yaml.safe_load(value) for key, value in changes.items()}
    )


def rows(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "tokens_per_s"))}
        for line in lines
    ]


def check(folder, recipe, weights="model.safetensors"):
    """An uninterrupted run, and one broken off after round 1 and resumed, end alike."""

    def break_off(row):
        if row["round"] == 1:
            raise BrokenOffError

    whole, cut = folder / "whole", folder / "cut"
    result = runner.run(recipe, whole, allow_code=True)
    with pytest.raises(BrokenOffError):
        runner.run(recipe, cut, allow_code=True, on_report=break_off)
    runner.run(recipe, cut, allow_code=True, resume=True)
    assert (cut / "model" / weights).read_bytes() == (whole / "model" / weights).read_bytes()
    assert rows(cut) == rows(whole)
    return result, rows(whole)


@pytest.mark.parametrize("case", OFFLINE)
def test_offline(folder, tiny_model, case):
    text = OFFLINE[case] + "batch_size: 2\nmax_steps: 2\neval: {split: 0.34}\n"
    result, found = check(folder, recipe_of(folder, tiny_model, "offline", text))
    assert (result.rounds, result.steps) == (2, 2)
    assert found[-1]["eval/loss"] != found[0]["eval/loss"]


def test_what_is_sampled_is_judged_before_and_after(folder, tiny_model):
    samples = (
        "samples:\n  prompts: pairs.jsonl\n  reward: rewards.py:length\n"
        "  sampling: {n: 2, max_tokens: 4, seed: 1}\n"
    )
    text = "objective: dpo\nbatch_size: 2\nmax_steps: 3\nreference: frozen\n" + samples
    result, found = check(folder, recipe_of(folder, tiny_model, "offline", text))
    scores = [row.get("eval/objective/scores") for row in found]
    assert [s is None for s in scores] == [False, True, True, False]
    assert result.before[0] == scores[0]
    assert result.after[0] == scores[-1]
    assert (folder / "whole" / "samples.md").exists()


@pytest.mark.parametrize("case", REWARD_MODELS)
def test_reward_models(folder, tiny_model, case):
    text = "batch_size: 3\n" if "batch_size" not in REWARD_MODELS[case] else ""
    recipe = recipe_of(folder, tiny_model, "reward_model", text + REWARD_MODELS[case])
    result, found = check(folder, recipe)
    assert (result.rounds, result.steps) == (2, 2)
    assert ("strength/mean" in found[-1]) == (case == "strength")
    config = json.loads((folder / "whole" / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize(
    ("loop", "text", "message"),
    [
        ("offline", "objective: nll\n", "data.unpair says which of a pair count"),
        ("offline", "objective: slic\n", "needs the reg response"),
        ("offline", "objective: mmpo\n", "needs chosen_scores of every comparison"),
        ("offline", "objective: nll\ndata.unpair: both\nauxiliary: revisions\n", "takes no comp"),
        (
            "offline",
            "objective: cpl\nreference: none\ntoken_columns: {w: reference_surprise}\n",
            "token_columns must be empty where the engine has no reference",
        ),
        ("reward_model", "objective: regression\n", "it needs lists with scores"),
        ("reward_model", "objective: gpm\n", "an even number of outputs"),
        ("reward_model", "reference: none\n", "reference must not be given to a reward model"),
        ("reward_model", "strength: {after: 1}\n", "strength.after must be smaller than epochs"),
        ("reward_model", "data.unpair: both\n", "data.unpair must not be given"),
    ],
)
def test_what_does_not_go_together_is_refused_before_loading(
    folder, tiny_model, monkeypatch, loop, text, message
):
    monkeypatch.setattr(runner, "Engine", None)
    with pytest.raises(ConfigError, match=message):
        runner.run(recipe_of(folder, tiny_model, loop, text), folder / "run", allow_code=True)
    assert not (folder / "run").exists()
