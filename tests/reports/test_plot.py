from __future__ import annotations

import sys

import pytest

from pyengine.errors import DataError, MissingDependencyError
from pyengine.reports.plot import plot

ROWS = [
    {"round": 0, "eval/objective/scores": 0.25, "eval/objective/scores_stderr": 0.05},
    {"round": 1, "objective/scores": 0.5, "objective/kl": 0.0, "pairs/pairs": 8, "loss": 0.6931},
    {"round": 2, "objective/scores": None, "objective/kl": 1.5, "pairs/pairs": 0},
]


def test_plot_writes_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    plot(ROWS, tmp_path / "p.png", "title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_plot_of_a_run_without_rewards_is_of_its_losses(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"round": r, "loss": 0.7 - r / 10, "rewards/margins": r / 5} for r in range(3)]
    rows[2]["eval/loss"] = 0.6
    plot(rows, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_plot_needs_a_reward_or_a_loss(tmp_path):
    with pytest.raises(DataError, match="hold a round with a reward or a loss but none has one"):
        plot([{"round": 1}], tmp_path / "p.png")


def test_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "pyengine\[demo\]"'):
        plot(ROWS, tmp_path / "p.png")
