"""What is read from files is trained: pairs, labelled responses and ranked lists of public layouts.

While policy and reference are the same every log-ratio is 0, so a pair costs log 2, a labelled
response 1 - sigmoid(0) = 1/2, and a list of K responses with any target log K.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import pyengine as pe
from pyengine.data.formats import read_rows

LAYOUTS = Path(__file__).parents[2] / "data" / "layouts"


@pytest.mark.parametrize(
    ("name", "objective", "loss"),
    [
        ("orca", pe.objectives.DPO(), math.log(2)),
        ("hh_rlhf", pe.objectives.DPO(), math.log(2)),
        ("sharegpt_pairs", pe.objectives.DPO(), math.log(2)),
        ("kto_mix", pe.objectives.KTO(), 0.5),
        ("sharegpt", pe.objectives.KTO(), 0.5),
        ("ranked_ratings", pe.objectives.InfoNCA(), math.log(2)),
    ],
)
def test_loss_of_the_first_update(make_engine, name, objective, loss):
    engine = make_engine(learning_rate=1e-3)
    batch = pe.Preferences.from_rows(read_rows(LAYOUTS / f"{name}.jsonl"), engine)
    metrics = engine.update(batch, objective)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert metrics["grad_norm"] > 0
    assert engine.forward_backward(batch, objective)["loss"] < metrics["loss"]
