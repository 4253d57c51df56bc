"""A run keeps the date it began on: chat templates may write it into prompts."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from tiny_batches import same_bits, weights

import pyengine as pe
from pyengine.data import tokenizer as tokenizers
from pyengine.engine.persist import checkpoint as checkpoints
from pyengine.errors import CheckpointError
from pyengine.objectives import DPO

DATED = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m.role }} "
    "{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
USER = {"role": "user", "content": "hi"}
ROWS = [
    {"prompt": [USER], "chosen": [{"role": "assistant", "content": chosen}],
     "rejected": [{"role": "assistant", "content": "no"}]}
    for chosen in ("yes", "well")
]  # fmt: skip


@pytest.fixture
def dated_model(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "dated"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = DATED
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def today_is(monkeypatch: pytest.MonkeyPatch, *day: int) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(*day, 12, 30)

    monkeypatch.setattr(tokenizers, "datetime", Clock)


def update(engine: pe.Engine, row: dict) -> None:
    engine.update(pe.Preferences.from_rows([row], engine), DPO())


def test_a_run_resumed_on_another_day_ends_with_the_same_weights(
    dated_model, tmp_path, monkeypatch
):
    today_is(monkeypatch, 2024, 2, 29)
    engine = pe.Engine.from_pretrained(dated_model, dtype="float32", learning_rate=0.01)
    update(engine, ROWS[0])
    engine.save_checkpoint(tmp_path / "step-1")
    today_is(monkeypatch, 2024, 3, 1)
    update(engine, ROWS[1])
    resumed = pe.Engine.load_checkpoint(tmp_path / "step-1")
    assert resumed.tokenizer.apply_chat_template([USER]).startswith("29 Feb 2024<|im_start|>user")
    update(resumed, ROWS[1])
    assert same_bits(weights(engine), weights(resumed))
    later = pe.Engine.from_pretrained(dated_model, dtype="float32")
    assert later.tokenizer.apply_chat_template([USER]).startswith("01 Mar 2024<|im_start|>user")


def test_a_caller_may_fix_the_date(dated_model, tmp_path):
    engine = pe.Engine.from_pretrained(dated_model, dtype="float32")
    engine.tokenizer.date = datetime(1999, 12, 31)
    engine.save_checkpoint(tmp_path / "step-0")
    loaded = pe.Engine.load_checkpoint(tmp_path / "step-0")
    assert loaded.tokenizer.date == datetime(1999, 12, 31)
    assert loaded.tokenizer.encode_prompt([USER]) == engine.tokenizer.encode_prompt([USER])


def test_a_reward_model_keeps_its_date(dated_model, tmp_path, monkeypatch):
    today_is(monkeypatch, 2024, 2, 29)
    pe.RewardModel.from_pretrained(dated_model).save_checkpoint(tmp_path / "step-0")
    today_is(monkeypatch, 2024, 3, 1)
    loaded = pe.RewardModel.load_checkpoint(tmp_path / "step-0")
    assert loaded.tokenizer.date == datetime(2024, 2, 29, 12, 30)


def test_checkpoints_without_a_date_load_and_broken_dates_are_refused(
    dated_model, tmp_path, monkeypatch
):
    engine = pe.Engine.from_pretrained(dated_model, dtype="float32")
    engine.save_checkpoint(tmp_path / "step-0")
    assert "date" not in read_with(tmp_path / "step-0", monkeypatch, None)
    today_is(monkeypatch, 2024, 3, 1)
    loaded = pe.Engine.load_checkpoint(tmp_path / "step-0")
    assert loaded.tokenizer.date == datetime(2024, 3, 1, 12, 30)
    read_with(tmp_path / "step-0", monkeypatch, "soon")
    with pytest.raises(CheckpointError, match="date must be an ISO date but is 'soon'"):
        pe.Engine.load_checkpoint(tmp_path / "step-0")


def read_with(path: Path, monkeypatch: pytest.MonkeyPatch, date: str | None) -> dict:
    """Makes reading the checkpoint find this date, or none, in its state; the state."""
    content = checkpoints.read(path)
    content.state.pop("date", None)
    content.state.update({} if date is None else {"date": date})
    monkeypatch.setattr(checkpoints, "read", lambda _: content)
    return content.state
