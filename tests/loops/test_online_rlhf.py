"""Weeks of online RLHF: labels are taken in when a round is done, and are part of its place."""

from __future__ import annotations

import json

import pytest
import torch
from fake_engine import FakeEngine
from loops.loop_cases import ByDigest, make

from pyengine.errors import ConfigError
from pyengine.loops import OnlineRLHF
from pyengine.objectives import RLOO
from pyengine.preferences.comparators.by_reward import ByReward
from pyengine.preferences.sources.refitted_head import RefittedHead


class Counts:
    """Hidden states: how often each of the eight words is there."""

    def hidden_states(self, groups, pool="last"):
        return [
            [torch.tensor([float(r.token_ids.count(k)) for k in range(8)]) for r in g.responses]
            for g in groups
        ]


def online(engine=None, **changes):
    head = RefittedHead(ByReward(ByDigest(), scale=0.1), Counts(), labels=3)
    return make(OnlineRLHF, RLOO(), engine, **({"source": head} | changes))


def test_every_round_adds_its_labels():
    loop = online()
    reports = list(loop.run(3))
    assert [r["judge/labels"] for r in reports] == [9.0] * 3
    assert [r["judge/labels_known"] for r in reports] == [9.0, 18.0, 27.0]
    assert ["judge/foreseen" in r for r in reports] == [False, True, True]
    assert len(loop.source.known) == 27
    assert all(r["objective/scores"] == pytest.approx(0.0, abs=1e-12) for r in reports)


def test_a_round_that_fails_adds_nothing(monkeypatch):
    loop = online()
    loop.run_round()

    def fails(batch, objective):
        raise MemoryError

    monkeypatch.setattr(loop.engine, "update", fails)
    with pytest.raises(MemoryError):
        loop.run_round()
    assert len(loop.source.known) == 9


def test_a_saved_place_knows_the_labels(tmp_path):
    whole, cut = online(), online()
    list(whole.run(3))
    list(cut.run(2))
    cut.engine.save_checkpoint(tmp_path / "c")
    resumed = online(FakeEngine.load_checkpoint(tmp_path / "c"))
    resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    resumed.run_round()
    assert resumed.engine.weight == whole.engine.weight
    assert resumed.source.known == whole.source.known


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="source must be a preference model that takes labels in"):
        online(source=ByDigest())
    with pytest.raises(ConfigError, match="eval_source must judge the held-out prompts"):
        online(eval_prompts=["a"])
    assert online(eval_prompts=["a"], eval_source=ByDigest()).eval_prompts == ["a"]
