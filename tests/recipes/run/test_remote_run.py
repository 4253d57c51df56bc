"""Runs whose judge is behind an endpoint: consent, a limit that stops them, a key in no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, answer
from preferences.remote.scripted import KEY, shown
from recipes.run.fake_runs import RECIPE, checkpoints_of, run

from pyengine.errors import ConfigError, SpendingLimitError
from pyengine.recipes.run import runner
from pyengine.recipes.run.run_folder import RunFolder
from pyengine.recipes.schema.load import load_recipe

SOURCE = """\
source:
  name: remote_scores
  lowest: 0
  endpoint:
    model: judge
    base_url: {url}
    api_key_env: JUDGE_KEY
    cache: {cache}
    usd_per_million_prompt_tokens: 10.0
    usd_per_million_completion_tokens: 100.0
    limit_usd: {limit_usd}
"""


def by_good_words(_: int, body: dict) -> Any:
    [text] = shown(body)
    return answer({"score": min(10, text.count("good") + 2 * text.count("happy"))})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(by_good_words) as server:
        yield server


def recipe_of(tmp_path: Path, server: Server, cache: str, limit_usd: float = 100.0) -> Any:
    source = SOURCE.format(url=server.url, cache=cache, limit_usd=limit_usd)
    file = tmp_path / f"{cache}.yaml"
    shorter = RECIPE.replace("rounds: 6", "rounds: 3")
    file.write_text(shorter.replace("reward: rewards.py:happiness\n", source))
    return load_recipe(file)


def test_a_limit_stops_the_run_which_is_resumed_to_the_same_weights(
    tmp_path: Path, recipe: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    run(recipe_of(tmp_path, server, "whole-cache"), tmp_path / "whole")
    calls = len(server.requests)
    small = recipe_of(tmp_path, server, "cut-cache", limit_usd=0.002 * (calls // 2))
    with pytest.raises(SpendingLimitError, match="raise the limit to go on"):
        run(small, tmp_path / "cut")
    assert checkpoints_of(tmp_path / "cut")  # the rounds that were done
    with pytest.raises(SpendingLimitError):
        run(small, tmp_path / "cut", resume=True)
    large = recipe_of(tmp_path, server, "cut-cache")
    run(large, tmp_path / "cut", resume=True)
    assert len(server.requests) == 2 * calls  # nothing was paid for twice
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    assert (cut.model / "weight.json").read_text() == (whole.model / "weight.json").read_text()
    assert cut.samples.read_bytes() == whole.samples.read_bytes()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert (tmp_path / "cut-cache" / "answers.jsonl") in files  # relative to the recipe
    assert not any(KEY[:12].encode() in p.read_bytes() for p in files)


def test_a_recipe_sends_nothing_anywhere_unless_it_may(
    tmp_path: Path, recipe: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = recipe_of(tmp_path, server, "cache")
    with pytest.raises(ConfigError) as caught:
        runner.run(asks, tmp_path / "run", allow_code=False)
    assert server.url in str(caught.value)
    assert "JUDGE_KEY" in str(caught.value)
    assert "--allow-code" in str(caught.value)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="JUDGE_KEY must hold the endpoint's key but is not set"):
        run(asks, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert server.requests == []
