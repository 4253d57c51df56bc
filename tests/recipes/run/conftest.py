from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine, FakeText
from recipes.run.fake_runs import RECIPE, REWARDS, newest, prune

from pyengine.recipes.run import runner
from pyengine.recipes.schema.load import load_recipe


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "Engine", FakeEngine)
    monkeypatch.setattr(runner, "ModelText", FakeText)
    monkeypatch.setattr(runner.checkpoints, "newest_verified", newest)
    monkeypatch.setattr(runner.checkpoints, "prune", prune)
    for name, count in (("p", 5), ("h", 2)):
        rows = (json.dumps({"prompt": f"{name}{i}"}) + "\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "r.yaml")
