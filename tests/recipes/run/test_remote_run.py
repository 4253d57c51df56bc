"""Runs whose judge is behind an endpoint: consent, a limit that stops them, a key in no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from judge_server import Server, answer
from preferences.remote.scripted import KEY, shown
from recipes.run.fake_runs import RECIPE, Kill, Once, checkpoints_of, run, untimed

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


def test_a_run_killed_while_the_judge_is_asked_ahead_ends_as_one_without(
    tmp_path: Path, recipe: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of 32 responses are sampled in two slices; the kill comes in the second of round 2."""
    monkeypatch.setattr(runner, "plot", lambda *_: None)

    def sliced(cache: str, slices: int) -> Any:
        recipe_of(tmp_path, server, cache)
        file = tmp_path / f"{cache}.yaml"
        text = file.read_text().replace("n: 4", "n: 8").replace("per_round: 3", "per_round: 4")
        file.write_text(f"{text}judge: {{slices: {slices}}}\n")
        return load_recipe(file)

    whole, plain, cut = (RunFolder(tmp_path / name) for name in ("whole", "plain", "cut"))
    run(sliced("whole-cache", 4), whole.path)
    asked = len(server.requests)
    run(sliced("plain-cache", 1), plain.path)
    assert len(server.requests) == 2 * asked
    with monkeypatch.context() as patch:
        once = Once(FakeEngine.generate, 5, Kill())  # after an evaluation and three slices
        patch.setattr(FakeEngine, "generate", lambda *a, **o: once(*a, **o))
        with pytest.raises(Kill):
            run(sliced("cut-cache", 4), cut.path)
    assert once.calls == 5
    run(sliced("cut-cache", 4), cut.path, resume=True)
    assert untimed(plain.metrics) == untimed(whole.metrics)
    for folder in (plain, cut):
        for name in ("model/weight.json", "samples.jsonl"):
            assert (folder.path / name).read_bytes() == (whole.path / name).read_bytes()
