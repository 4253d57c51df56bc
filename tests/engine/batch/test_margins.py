"""Margins of comparisons: in the losses that have one, refused by all others."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_batches import group, preferences

import pyengine as pe
from pyengine.engine.batch.loss_batch import loss_batch
from pyengine.errors import ConfigError, RequestError
from pyengine.preferences import Feedback

TAKE_MARGINS = ["dpo", "hinge", "mmpo", "rebel", "slic"]
MARGINS = [0.5, 2.0]


def pairs(*margins: float | None, feedback: Feedback | None = None) -> pe.Preferences:
    groups = [group(3, [4, 5, 2], seed) for seed in range(2)]
    made = [pe.Comparison(g, 0, 1, margin=m, auxiliary=2) for g, m in enumerate(margins)]
    return pe.Preferences(groups, made, feedback)


def losses(name: str, batch: pe.Preferences, parts: list[range]) -> float:
    """Of log-probs -1 for a chosen token, -2 for a rejected, -3 else; the reference's half."""
    objective = pe.objectives.get(name)
    made = loss_batch(batch, objective, 259, 64)
    total = 0.0
    for part in parts:
        lengths = [len(r) for t in made.trees[part.start : part.stop] for r in t.responses]
        per_tree = len(lengths) // len(part)
        logps = torch.cat([torch.full((n,), -1.0 - i % per_tree) for i, n in enumerate(lengths)])
        ends = torch.tensor([0, *lengths]).cumsum(0)
        inputs = made.inputs(part, "comparison", ends, logps, logps / 2, {}, None)
        total += float(objective(inputs).loss)
    return total


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def soft(p: float, z: float) -> float:
    return p * softplus(-z) + (1 - p) * softplus(z)


@pytest.mark.parametrize("parts", [[range(2)], [range(1), range(1, 2)]])
@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # h = (-4 + 2) - (-10 + 5) = 3
        ("dpo", lambda m: softplus(-(0.1 * 3 - m))),
        ("hinge", lambda m: max(0.0, m - 0.1 * 3)),
        ("mmpo", lambda m: soft(1 / (1 + math.exp(-m)), 0.1 * 3)),
        ("rebel", lambda m: (3 - m) ** 2),
        # lp_c = -4, lp_r = -10, lp_reg = -6: the hinge is closed
        ("slic", lambda m: max(0.0, m * 1.0 + 4 - 10) + 0.1 * 6),
    ],
)
def test_a_margin_is_in_the_loss(name, by_hand, parts):
    expected = sum(map(by_hand, MARGINS)) / 2
    assert losses(name, pairs(*MARGINS), parts) == pytest.approx(expected, rel=1e-6)


def test_slics_margin_scales_its_delta():
    expected = sum(m + 4 - 10 + 0.6 for m in (7.0, 9.0)) / 2
    assert losses("slic", pairs(7.0, 9.0), [range(2)]) == pytest.approx(expected, rel=1e-6)


def test_the_plain_function_takes_it_too():
    """ODPO: -log sigmoid(beta h - m)."""
    logps = [torch.tensor([x], dtype=torch.float64) for x in (-4.0, -10.0, -2.0, -5.0)]
    loss = pe.objectives.pairwise_loss("dpo", *logps, margin=0.5)
    assert loss.item() == pytest.approx(softplus(-(0.3 - 0.5)))


@pytest.mark.parametrize("name", pe.objectives.available())
def test_others_refuse_a_margin(name):
    objective = pe.objectives.get(name)
    assert objective.takes_margin == (name in TAKE_MARGINS)
    if not objective.takes_margin:
        with pytest.raises(RequestError) as caught:
            loss_batch(pairs(None, 1.5), objective, 259, 64)
        assert str(caught.value) == (
            f"[update] {name} takes no margins but comparisons[1].margin is 1.5: "
            "dpo, hinge, slic, mmpo and rebel do"
        )


def test_all_or_none_have_one():
    with pytest.raises(RequestError) as caught:
        loss_batch(pairs(1.5, None), pe.objectives.DPO(), 259, 64)
    assert str(caught.value) == (
        "[update] margins must be given for every comparison or for none but "
        "comparisons[0].margin is 1.5 and comparisons[1] has none"
    )


def test_margins_and_the_scores_they_are_differences_of_are_refused():
    feedback = Feedback.from_rewards([[1.0, 0.0, 0.5]] * 2)
    with pytest.raises(RequestError, match="takes margins or the scores that they are differences"):
        loss_batch(pairs(1.0, 1.0, feedback=feedback), pe.objectives.get("mmpo"), 259, 64)


def test_an_engine_refuses_before_any_work(engine):
    batch = preferences()
    batch.comparisons = [pe.Comparison(0, 0, 1, margin=1.0)]
    with pytest.raises(RequestError, match=r"^\[update\] ipo takes no margins"):
        engine.update(batch, pe.objectives.get("ipo"))
    assert engine.update(batch, pe.objectives.DPO())["loss"] == pytest.approx(softplus(1.0))


# Numbers that would be overwritten, or do nothing


@pytest.mark.parametrize("name", ["rewards", "labels"])
def test_columns_of_a_name_that_has_a_field_are_refused(name):
    with pytest.raises(RequestError) as caught:
        Feedback([[1.0]], [["value"]], columns={name: [[0.0]]})
    assert str(caught.value) == (
        f"[Feedback] columns must not hold {name!r}, which would stand beside Feedback.{name}: "
        f"give it as {name}="
    )


@pytest.mark.parametrize("reduction", ["sequence", "token", "sum"])
def test_a_max_length_that_nothing_divides_by_is_refused(reduction):
    with pytest.raises(ConfigError) as caught:
        pe.objectives.get("grpo", reduction=reduction, max_length=8)
    assert str(caught.value) == (
        "[grpo] max_length must be None unless reduction is 'constant' but is 8 with reduction "
        f"{reduction!r}"
    )
    assert pe.objectives.get("grpo", reduction="constant", max_length=8).max_length == 8


def test_a_failed_opponent_is_left_out_of_the_win_rate():
    """0.5 against itself and 0.9 against the other; what stands against the failed one is not."""
    half = [0.5, 0.5, 0.5]
    feedback = Feedback(
        [[0.9, 0.1, None]],
        [["value", "value", "error"]],
        preference_matrix=[[[0.5, 0.9, 0.5], [0.1, 0.5, 0.5], half]],
    )
    batch = pe.Preferences([group(3, [2, 2, 2], 0)], [pe.Comparison(0, 0, 1)], feedback)
    made = loss_batch(batch, pe.objectives.get("sppo"), 259, 64)
    assert made.columns["win_rate"].tolist() == pytest.approx([0.7, 0.3])
