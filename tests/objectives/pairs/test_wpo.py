"""WPO: its weights by hand, from packed tokens and as the plain function takes them."""

from __future__ import annotations

import math

import pytest
import torch

from pyengine.objectives import WPO, LossInputs, pairwise_loss

LOG2 = math.log(2)


def test_hand_arithmetic() -> None:
    """Weights 0.5 and 0.8, at policy == reference: 0.4 log 2; 1.5 and 0.9 are cut to 1."""
    logps = torch.tensor([-4.0, -4.0], dtype=torch.float64)
    given = {"chosen_weight": [0.5, 1.5], "rejected_weight": [0.8, 0.9]}
    clamped = pairwise_loss("wpo", logps, logps, logps, logps, **given)
    assert clamped.tolist() == pytest.approx([0.4 * LOG2, LOG2], rel=1e-14)
    free = pairwise_loss("wpo", logps, logps, logps, logps, clamp=False, **given)
    assert free.tolist() == pytest.approx([0.4 * LOG2, 1.35 * LOG2], rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_from_tokens(dtype: torch.dtype) -> None:
    """Chosen: p = 1/4, 1/2 and sums of squares 1/2, 1/2: sqrt(1/2 * 1) = 0.7071; rejected: p = 1/8,
    sum of squares 1/4: 1/2. At policy == reference the loss is 0.35355 log 2 and the slope on each
    chosen token -0.35355 beta / 2.
    """
    logps = torch.tensor([0.25, 0.5, 0.125], dtype=dtype).log()
    x = LossInputs(
        policy_token_logps=logps,
        reference_token_logps=logps.clone(),
        cu_seqlens=torch.tensor([0, 2, 3]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        probability=torch.ones(1, dtype=dtype),
        weight=torch.ones(1, dtype=dtype),
        total_weight=1.0,
        side={"sum_squares": torch.tensor([0.5, 0.5, 0.25], dtype=dtype)},
    )
    output = WPO(beta=0.2)(x)
    w = math.sqrt(0.5) / 2
    assert output.loss.item() == pytest.approx(w * LOG2, rel=1e-6)
    assert output.dlogps.tolist() == pytest.approx([-0.1 * w, -0.1 * w, 0.1 * w], rel=1e-6)
