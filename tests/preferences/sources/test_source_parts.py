"""Sources as parts that a recipe names: made with names, bound to objects, asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import save_hf
from transformers import AutoModelForSequenceClassification

import pyengine as pe
from pyengine.errors import ConfigError
from pyengine.preferences import Gives, Group, Response
from pyengine.preferences.binding import bind, unbound
from pyengine.preferences.sources.available import SOURCES

GROUPS = [Group([5, 6], [Response([k + 3, 9], text="x" * k) for k in range(3)])]


def lengths(completions: list[str]) -> list[float | None]:
    return [float(len(c)) if c else None for c in completions]


class Run:
    """What a run has under each name."""

    def __init__(self, reward_model: Any = None) -> None:
        self._reward_model = reward_model

    def model(self, name: str) -> Any:
        raise AssertionError(name)

    def reward_model(self, name: str) -> Any:
        assert name == "models/reward"
        return self._reward_model

    def function(self, name: str) -> Any:
        assert name == "lengths"
        return lengths


def function() -> Any:
    return SOURCES.make("function", function="lengths", timeout_s=9.0)


def test_they_are_made_with_names_and_bound_to_objects() -> None:
    """sum = 2 * length - length; label where it is above 1; P = sigmoid(r_i - r_j)."""
    total = SOURCES.make("reward_sum", sources=[function(), function()], weights=(2.0, -1.0))
    part = SOURCES.make(
        "derived",
        source=total,
        label_threshold=1.0,
        bradley_terry_scale=1.0,
        columns=("size",),
        column_sources=[function()],
    )
    assert part.gives == Gives(labels=True, matrix=True, columns=("size",))
    assert unbound(part) == [("lengths", "function")] * 3
    with pytest.raises(ConfigError, match="give the object"):
        part(GROUPS)
    feedback = bind(part, Run())(GROUPS)
    assert feedback.rewards == [[None, 1.0, 2.0]]
    assert feedback.labels == [[False, False, True]]
    assert feedback.columns == {"size": [[None, 1.0, 2.0]]}
    assert feedback.components["lengths_1"] == [[None, 1.0, 2.0]]
    assert feedback.preference_matrix[0][2][1] == pytest.approx(0.7310586)


def test_a_classifier_of_transformers_is_a_reward_model(tmp_path: Path) -> None:
    causal = save_hf("qwen3-bias-tied", tmp_path / "base")
    causal.config.num_labels, causal.config.pad_token_id = 1, 0
    causal.config.save_pretrained(tmp_path / "base")
    hf = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    hf.save_pretrained(tmp_path / "theirs")
    model = pe.RewardModel.from_pretrained(tmp_path / "theirs", dtype="float32")
    part = SOURCES.make("reward_model", model="models/reward", label="theirs")
    assert part.gives == Gives()
    feedback = bind(part, Run(model))(GROUPS)
    with torch.no_grad():
        expected = [
            float(hf(torch.tensor([[5, 6, *r.token_ids]])).logits) for r in GROUPS[0].responses
        ]
    assert feedback.rewards == [pytest.approx(expected, abs=1e-5)]
    assert feedback.components == {"theirs": feedback.rewards}
    dropout = bind(SOURCES.make("mc_dropout", model="models/reward"), Run(model))
    assert dropout(GROUPS).counts["value"] == 3


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("reward_sum", {"sources": []}, "[reward_sum] sources must hold at least one"),
        (
            "derived",
            {"source": lengths},
            "[derived] label_threshold, bradley_terry_scale or columns",
        ),
        (
            "derived",
            {"source": lengths, "columns": ("a",)},
            "[derived] columns must name one column",
        ),
        ("function", {"function": lambda: 1}, "[reward] the reward function must take completions"),
        ("reward_model", {"model": "m", "reading": "elo"}, "[reward_model] reading must be one of"),
        ("reward_model", {"model": "m", "penalty": 1.0}, "[reward_model] penalty is used where"),
    ],
)
def test_what_is_refused_before_anything_is_bound(name: str, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SOURCES.make(name, **fields)
    assert str(caught.value).startswith(message)
