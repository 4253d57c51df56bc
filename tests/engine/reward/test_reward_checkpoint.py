"""Checkpoints of reward models: training goes on bit for bit, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import save_hf
from tiny_batches import preferences, same_bits

import pyengine as pe
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.errors import CheckpointError, RequestError

SETTINGS: list[dict[str, Any]] = [
    {"dtype": "float32", "ensemble": 3},
    {"dtype": "bfloat16", "outputs": 4, "optimizer_bits": 8},
    {"dtype": "bfloat16", "lora": pe.LoraConfig(r=4)},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_hf("llama", folder)
    return folder


def new(llama: Path, **settings: Any) -> pe.RewardModel:
    return pe.RewardModel.from_pretrained(llama, learning_rate=1e-3, **settings)


def update(model: pe.RewardModel, times: int) -> list[dict[str, float]]:
    batch, loss = preferences(97), "gpm" if model.outputs == 4 else "soft_bt"
    return [model.update(batch, loss) for _ in range(times)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s)))
def test_training_goes_on_bit_for_bit(
    llama: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight = new(llama, **settings)
    metrics = update(straight, 4)
    model = new(llama, **settings)
    update(model, 2)
    model.save_checkpoint(tmp_path / "at2", extra={"row": 17})
    again = pe.RewardModel.load_checkpoint(tmp_path / "at2")
    assert (again.extra, again.step_count) == ({"row": 17}, 2)
    assert (again.outputs, again.ensemble) == (model.outputs, model.ensemble)
    assert update(again, 2) == metrics[2:]
    assert same_bits(
        {n: p.detach() for n, p in again._network.parameters.items()},
        {n: p.detach() for n, p in straight._network.parameters.items()},
    )
    groups = preferences(97).groups
    for ours, theirs in zip(again.rewards(groups), straight.rewards(groups), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_checkpoint_before_the_first_step(llama: Path, tmp_path: Path) -> None:
    model = new(llama, dtype="float32")
    model.save_checkpoint(tmp_path / "at0")
    again = pe.RewardModel.load_checkpoint(tmp_path / "at0")
    assert update(again, 2) == update(model, 2)


def test_gradients_that_no_step_has_applied(llama: Path, tmp_path: Path) -> None:
    model = new(llama, dtype="float32")
    model.forward_backward(preferences(97), "soft_bt")
    with pytest.raises(RequestError, match="there are gradients that no step has applied"):
        model.save_checkpoint(tmp_path / "between")
    assert not (tmp_path / "between").exists()


def test_what_is_no_reward_models(llama: Path, tmp_path: Path) -> None:
    new(llama, dtype="float32").save_checkpoint(tmp_path / "judge")
    pe.Engine.from_pretrained(llama, dtype="float32").save_checkpoint(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"state.json is not a reward model's: 'reward_model"):
        pe.RewardModel.load_checkpoint(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"state.json is not an engine's: 'config'"):
        pe.Engine.load_checkpoint(tmp_path / "judge")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"heads": [2, 1]}, r"score.weight must have shape \(2, \d+\) but has \(1, \d+\)"),
        ({"heads": "none"}, "state.json is not a reward model's"),
        ({"unknown": 1}, "state.json is not a reward model's"),
        ({"dtype": "float8"}, "state.json is not a reward model's: dtype 'float8' does not train"),
        ({"reading": "elo"}, "state.json is not a reward model's: reading 'elo' is none of "),
    ],
)
def test_damage_is_named(llama: Path, tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    folder = tmp_path / "judge"
    new(llama, dtype="float32").save_checkpoint(folder)
    content = checkpoints.read(folder)
    content.state["reward_model"] |= damage
    checkpoints.write(tmp_path / "damaged", content, {}, None)
    with pytest.raises(CheckpointError, match=message):
        pe.RewardModel.load_checkpoint(tmp_path / "damaged")
    (folder / "head.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"head.safetensors"):
        pe.RewardModel.load_checkpoint(folder)
    state = json.loads((tmp_path / "damaged" / "state.json").read_text())
    assert state["reward_model"].items() >= damage.items()
