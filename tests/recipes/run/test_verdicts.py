"""What the judge said of a round is on file, and is taken for that round and no other."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine
from recipes.run.fake_runs import RECIPE, Kill, Once, killer, run, same_ends, untimed

from pyengine.errors import CheckpointError, RewardError
from pyengine.loops import steps
from pyengine.loops.steps import Verdict
from pyengine.preferences import Feedback, Group, Response
from pyengine.recipes.run import runner, verdicts
from pyengine.recipes.run.verdicts import Verdicts
from pyengine.recipes.schema.load import load_recipe
from pyengine.reports.writers.jsonl import read_lines

# Says how often it was asked for training (held-out prompts begin with h), and fails as told.
REWARDS = """\
import json, pathlib
here = pathlib.Path(__file__).parent
def judge(prompts, completions, place=None):
    if prompts[0].startswith("h"):
        return [float(len(c)) for c in completions]
    with (here / "calls").open("a") as file:
        file.write(json.dumps(prompts) + "\\n")
    number = len((here / "calls").read_text().splitlines())
    if number in json.loads((here / "silent").read_text()):
        return [None] * len(completions)
    place = place or [0] * len(completions)
    return [float(sum(map(ord, c)) % 7 + 100 * number + (p or 0) * len(c)) for c, p in
            zip(completions, place)]
"""
WAITS = "judge: {retries: 1, backoff_s: 0.5}\n"


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(steps.time, "sleep", found.append)
    return found


@pytest.fixture
def judged(tmp_path, recipe, monkeypatch):
    """(text, silent calls) -> recipe whose judge answers by the number of the call."""
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(more="", silent=()):
        text = RECIPE.replace("rewards.py:happiness", "rewards.py:judge") + more
        (tmp_path / "r.yaml").write_text(text)
        (tmp_path / "silent").write_text(json.dumps(list(silent)))
        (tmp_path / "calls").write_text("")
        return load_recipe(tmp_path / "r.yaml")

    return make


def calls(tmp_path):
    return len((tmp_path / "calls").read_text().splitlines())


def test_a_judge_that_was_away_is_asked_again_by_the_resumed_run(tmp_path, judged):
    """A round that the judge's silence ended has no verdict."""
    with pytest.raises(RewardError, match="12 abstained"):
        run(judged(silent=[3]), tmp_path / "cut")
    rounds = [row["round"] for row in read_lines(tmp_path / "cut" / "verdicts.jsonl")]
    assert rounds == [1, 2]
    run(judged(), tmp_path / "cut", resume=True)
    assert calls(tmp_path) == 4  # rounds 3 to 6


def test_equal_responses_of_another_round_get_a_verdict_of_their_own(tmp_path, judged, monkeypatch):
    """Rows may differ in the columns alone, and a judge that is a person may change its mind."""
    rows = (json.dumps({"prompt": "p", "place": i}) + "\n" for i in range(3))
    (tmp_path / "p.jsonl").write_text("".join(rows))
    monkeypatch.setattr(FakeEngine, "_sample", same_sample)
    whole = run(judged(), tmp_path / "whole")
    with pytest.raises(Kill):
        run(judged(), tmp_path / "cut", on_report=killer(2))
    run(load_recipe(tmp_path / "r.yaml"), tmp_path / "cut", resume=True)
    assert calls(tmp_path) == whole.rounds
    same_ends(tmp_path / "whole", tmp_path / "cut")


_sample = FakeEngine._sample


def same_sample(self, weight, params, request_id, k):
    return _sample(self, 0.0, params, 0, k)


def test_retries_are_counted_and_stay_counted_when_resumed(tmp_path, judged, waits):
    run(judged(WAITS, silent=[2, 5]), tmp_path / "whole")
    retries = [r.get("judge/retries") for r in read_lines(tmp_path / "whole" / "metrics.jsonl")]
    assert retries == [None, 0, 1, 0, 1, 0, 0]
    assert waits == [0.5, 0.5]
    broken_off_in_round_4(tmp_path, judged(WAITS, silent=[2, 5]))
    run(load_recipe(tmp_path / "r.yaml"), tmp_path / "cut", resume=True)
    assert untimed(tmp_path / "cut" / "metrics.jsonl") == untimed(
        tmp_path / "whole" / "metrics.jsonl"
    )
    assert waits == [0.5] * 4  # nobody waits for a verdict on file
    same_ends(tmp_path / "whole", tmp_path / "cut")


def test_a_skipped_round_is_counted_and_stays_skipped_when_resumed(tmp_path, judged, waits):
    more = WAITS.replace("{", "{on_failure: skip, ")
    run(judged(more, silent=[4, 5]), tmp_path / "whole")
    skipped = [r.get("rounds_skipped") for r in read_lines(tmp_path / "whole" / "metrics.jsonl")]
    assert skipped == [None, 0, 0, 0, 1, 1, 1]
    recipe = judged(more, silent=[4, 5])
    with pytest.raises(Kill):
        run(recipe, tmp_path / "cut", on_report=killer(5))
    lose(tmp_path / "cut" / "checkpoints" / "step-5")
    lose(tmp_path / "cut" / "checkpoints" / "step-4")
    run(recipe, tmp_path / "cut", resume=True)
    assert calls(tmp_path) == 7
    same_ends(tmp_path / "whole", tmp_path / "cut")
    assert [r["round"] for r in read_lines(tmp_path / "cut" / "verdicts.jsonl")] == list(
        range(1, 7)
    )


def lose(checkpoint):
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()


def broken_off_in_round_4(tmp_path, recipe):
    """After its verdict is on file and before its checkpoint."""
    once = Once(FakeEngine.update, 4, Kill())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "update", lambda *a: once(*a))
        with pytest.raises(Kill):
            run(recipe, tmp_path / "cut")


def test_what_is_asked_twice_in_a_round_has_one_verdict(tmp_path):
    """A sampler may ask about the responses that its round is judged by."""
    groups, asked = [Group([1], [Response([2]), Response([3])])], []

    def ask():
        asked.append(None)
        return Verdict(Feedback.from_rewards([[float(len(asked)), 0.0]]))

    kept = Verdicts(tmp_path / "verdicts.jsonl")
    said = [kept(number, groups, ask).feedback.rewards[0][0] for number in (1, 1, 2, 2)]
    assert said == [1.0, 1.0, 2.0, 2.0]
    again = Verdicts(tmp_path / "verdicts.jsonl")
    assert [again(number, groups, ask).feedback.rewards[0][0] for number in (1, 2)] == [1.0, 2.0]
    assert len(asked) == len(read_lines(tmp_path / "verdicts.jsonl")) == 2


def test_a_disk_that_is_full_for_a_verdict_ends_the_run_which_is_resumed(
    tmp_path, judged, monkeypatch
):
    """The round has learned nothing; its judge is asked again."""
    run(judged(), tmp_path / "whole")
    (tmp_path / "calls").write_text("")
    with monkeypatch.context() as patch:
        fails = Once(verdicts.append_lines, 3, CheckpointError("[verdicts.jsonl] no space left"))
        patch.setattr(verdicts, "append_lines", fails)
        with pytest.raises(CheckpointError, match="no space left"):
            run(load_recipe(tmp_path / "r.yaml"), tmp_path / "cut")
    (tmp_path / "calls").write_text("1\n2\n")  # the third call has been forgotten
    run(load_recipe(tmp_path / "r.yaml"), tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")
