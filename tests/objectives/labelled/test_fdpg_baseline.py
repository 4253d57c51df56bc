"""f-DPG's leave-one-out baseline, by hand."""

from __future__ import annotations

import pytest
import torch

from pyengine.objectives import LossInputs, get

LOGPS = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)


def given() -> LossInputs:
    """Two responses to one prompt and one to another, a token each; sampler is the policy."""
    none = torch.zeros(0, dtype=torch.int64)
    return LossInputs(
        policy_token_logps=LOGPS,
        reference_token_logps=None,
        sampler_token_logps=LOGPS,
        cu_seqlens=torch.tensor([0, 1, 2, 3]),
        chosen=none,
        rejected=none,
        probability=none,
        weight=torch.ones(3, dtype=torch.float64),
        total_weight=3.0,
        group=torch.tensor([0, 0, 1]),
        columns={"target_logps": torch.tensor([-2.0, -2.0, -1.0])},
    )


def test_by_hand() -> None:
    """log(policy / target) 1, 0 and -2: f' = log t + 1 is 2, 1 and -1; less the others' 1, 2 and
    nothing the slopes are 1, -1 and -1, over three."""
    output = get("fdpg", divergence="reverse_kl", leave_one_out=True)(given())
    assert output.dlogps.tolist() == pytest.approx([1 / 3, -1 / 3, -1 / 3], rel=1e-12)
    plain = get("fdpg", divergence="reverse_kl")(given())
    assert plain.dlogps.tolist() == pytest.approx([2 / 3, 1 / 3, -1 / 3], rel=1e-12)
