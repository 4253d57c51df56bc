"""CAPO leaves tokens out by their predicted step; AMPO learns from a teacher's responses, too."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from pyengine.errors import RequestError
from pyengine.objectives import LossInputs, get
from pyengine.objectives.tokens.capo import predicted


def inputs(policy: list[float], lengths: list[int], **changes: Any) -> LossInputs:
    """One group whose first response is right and the others wrong; sampler is the policy."""
    none = torch.zeros(0, dtype=torch.int64)
    logps = torch.tensor(policy, dtype=torch.float64)
    count = len(lengths)
    fields: dict[str, Any] = {
        "policy_token_logps": logps,
        "reference_token_logps": logps - 0.2,
        "sampler_token_logps": logps,
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "chosen": none,
        "rejected": none,
        "probability": none,
        "weight": torch.ones(count, dtype=torch.float64),
        "total_weight": float(count),
        "total_tokens": sum(lengths),
        "group": torch.zeros(count, dtype=torch.int64),
        "columns": {"rewards": torch.tensor([1.0] + [0.0] * (count - 1))},
    }
    return LossInputs(**(fields | changes))


def test_predicted_by_hand():
    """Two words of 1/2: s = 1/2, |g|^2 = 1/2, g'Fg at most 0.5^1.5 = 0.35355. With A = 2 and step 1
    the shift is 4 * 0.35355 / 2 = 0.70711 and the gain 4 / 2 - 2 * 0.70711 = 0.58579."""
    half = torch.tensor([0.5], dtype=torch.float64)
    gain, shift = predicted(half, half, torch.tensor([2.0], dtype=torch.float64), 1.0)
    assert shift.item() == pytest.approx(0.70710678, abs=1e-8)
    assert gain.item() == pytest.approx(0.58578644, abs=1e-8)


def test_the_shift_is_no_less_than_second_order_and_near_the_divergence_where_one_word_has_all():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 4.0):
        z = scale * torch.randn(50, 7, generator=generator, dtype=torch.float64)
        p = z.softmax(1)
        a = torch.randn(50, generator=generator, dtype=torch.float64)
        g = torch.eye(7, dtype=torch.float64)[0] - p
        exact = (p * g**2).sum(1) - (p * g).sum(1) ** 2
        _, shift = predicted(p[:, 0], (p**2).sum(1), a, 0.3)
        assert bool((shift >= 0.3**2 * a**2 * exact / 2 - 1e-12).all())
    sure = torch.tensor([1.0, 0.0], dtype=torch.float64)  # of the word itself, and of another
    _, shift = predicted(sure, torch.ones(2, dtype=torch.float64), torch.ones(2), 1.0)
    assert shift.tolist() == [0.0, 0.0]


def capo_inputs() -> LossInputs:
    side = {"sum_squares": torch.tensor([0.5, 0.904, 0.3], dtype=torch.float64)}
    policy = [math.log(0.5), math.log(0.95), math.log(0.1)]
    return inputs(policy, [2, 1], side=side)


def test_capo_without_bounds_is_grpo():
    given = capo_inputs()
    ours, grpo = get("capo", max_shift=1e9, min_gain=-1e9)(given), get("grpo")(given)
    assert ours.loss.item() == pytest.approx(grpo.loss.item(), rel=1e-12)
    torch.testing.assert_close(ours.dlogps, grpo.dlogps, rtol=1e-12, atol=1e-15)
    assert ours.metrics["capo/left_out"].tolist() == [0.0, 0.0]


def test_what_moves_too_far_is_left_out():
    """A^2 = 1/2 of the first response: shifts of 0.5^2 / 4 times curvatures of at most 0.35355 and
    -0.855 + 0.904^1.5 - 0.046^2 = 0.00239, so 0.0221 and 0.0001."""
    output = get("capo", beta=0.0, max_shift=0.02)(capo_inputs())
    assert output.dlogps[0] == 0.0
    assert output.dlogps[1] == pytest.approx(-math.sqrt(0.5) / 4, rel=1e-3)
    assert output.metrics["capo/left_out"].tolist()[0] == 0.5
    assert output.metrics["capo/shift"].tolist()[0] == pytest.approx(0.01112, rel=1e-2)


def test_ampo_by_hand():
    """A is 1/2 and -1/2. The teacher's token has p = gamma = 0.1: loss -1/4, slope -A gamma p /
    (p + gamma)^2 = -1/8; the sampled one, at ratio 1, loss 1/2 and slope 1/2. Both over two."""
    columns = {
        "rewards": torch.tensor([1.0, 0.0]),
        "off_policy": torch.tensor([1.0, 0.0]),
    }
    given = inputs([math.log(0.1), -2.0], [1, 1], columns=columns)
    ampo = get("ampo", beta=0.0, advantage_estimator="dr_grpo", gamma=0.1)
    output = ampo(given)
    assert output.loss.item() == pytest.approx((-0.25 + 0.5) / 2, rel=1e-12)
    assert output.dlogps.tolist() == pytest.approx([-0.125 / 2, 0.5 / 2], rel=1e-12)
    # Who sampled is not asked of the teacher's.
    other = dataclasses.replace(given, sampler_token_logps=torch.tensor([-9.0, -2.0]).double())
    assert ampo(other).dlogps.tolist() == output.dlogps.tolist()


def test_ampo_without_a_teacher_is_grpo_and_asks_for_the_column():
    given = inputs([-1.0, -2.0, -0.5], [2, 1])
    with pytest.raises(RequestError, match=r"\[ampo\] needs off_policy of every response"):
        get("ampo")(given)
    columns = {**given.columns, "off_policy": torch.zeros(2)}
    ours, grpo = get("ampo")(dataclasses.replace(given, columns=columns)), get("grpo")(given)
    torch.testing.assert_close(ours.dlogps, grpo.dlogps, rtol=1e-12, atol=1e-15)
