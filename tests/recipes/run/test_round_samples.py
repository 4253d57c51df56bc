"""The best and the worst of each round are kept, once, through kills."""

from __future__ import annotations

import pytest
from recipes.run.fake_runs import Kill, run, same_ends

from pyengine.preferences import Feedback, Group, Response
from pyengine.recipes.run import runner
from pyengine.recipes.run.samples import extreme_rows
from pyengine.reports.writers.jsonl import read_lines


def test_extremes_by_hand():
    """Seven rewards: three at either end, the middle one in neither; of equals the first."""
    texts = [[f"{g}{k}" for k in range(4)] for g in range(2)]
    groups = [
        Group(
            [0], [Response([1] * (k + 1), text=text) for k, text in enumerate(row)], prompt=f"p{g}"
        )
        for g, row in enumerate(texts)
    ]
    feedback = Feedback.from_rewards([[1.0, 5.0, 2.0, None], [5.0, 0.0, 3.0, -1.0]])
    rows = extreme_rows(4, groups, feedback)
    assert [(row["side"], row["completion"], row["reward"]) for row in rows] == [
        ("top", "01", 5.0), ("top", "10", 5.0), ("top", "12", 3.0),
        ("bottom", "00", 1.0), ("bottom", "11", 0.0), ("bottom", "13", -1.0),
    ]  # fmt: skip
    assert rows[0] | {"round": 4, "prompt": "p0", "tokens": 2} == rows[0]
    assert extreme_rows(4, groups, None) == []
    one = extreme_rows(1, groups[:1], Feedback.from_rewards([[None, 5.0, None, None]]))
    assert [row["side"] for row in one] == ["top"]


def test_a_round_that_is_saved_but_not_on_file_keeps_its_samples(tmp_path, recipe, monkeypatch):
    """Killed between the checkpoint of round 4 and its line of metrics."""
    monkeypatch.setattr(runner, "plot", lambda *_: None)
    run(recipe, tmp_path / "whole")
    rows = read_lines(tmp_path / "whole" / "round_samples.jsonl")
    assert [row["round"] for row in rows] == [r for r in range(1, 7) for _ in range(6)]
    original = runner.append_lines

    def kill(path, rows):
        if path.name == "round_samples.jsonl" and rows[0]["round"] == 4:
            raise Kill
        original(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "append_lines", kill)
        with pytest.raises(Kill):
            run(recipe, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoints" / "step-4").exists()
    run(recipe, tmp_path / "cut", resume=True)
    same_ends(tmp_path / "whole", tmp_path / "cut")
