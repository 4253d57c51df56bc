"""GRPO's loss types and RLOO against TRL's own trainers (1.16), value and slope, in float64.

The trainers' `_compute_loss` is called on log-probs that are given to it. Differences: TRL's
default loss type is "dapo" and its beta 0, ours the paper's. TRL 1.16 ships no PPO and no Nash-MD.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from pyengine.objectives import advantages, token_loss

trl = pytest.importorskip("trl")

MAX_LENGTH = 9
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
REWARDS = torch.tensor([[0.5, 2.0], [1.0, -3.0]], dtype=torch.float64)


def draw() -> list[Tensor]:
    """Log-probs under policy, sampler and reference; ratios on both sides of the clip range."""
    g = torch.Generator().manual_seed(0)
    policy = -torch.rand(4, 5, generator=g, dtype=torch.float64) * 3
    return [policy, *(policy + 0.4 * torch.randn(policy.shape, generator=g) for _ in range(2))]


def trl_loss(trainer: type, logps: list[Tensor], a: Tensor, **settings: Any) -> Tensor:
    """The trainer's loss of one batch that is not accumulated."""
    policy, old, ref = logps
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x,
        gather_for_metrics=lambda x: x, sync_gradients=True,
    )  # fmt: skip
    mock = MagicMock()
    mock.configure_mock(
        accelerator=accelerator,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros(4, 5), None),
        _metrics={"train": defaultdict(list)},
        **{
            "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None, "use_vllm": False, "aux_loss_enabled": False,
            "importance_sampling_level": "token", "max_completion_length": MAX_LENGTH,
            "current_gradient_accumulation_steps": 1, "_entropy_bonus_enabled": False,
        }
        | settings,
    )  # fmt: skip
    prompts = torch.zeros(4, 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": prompts + 1, "completion_ids": MASK,
        "completion_mask": MASK, "advantages": a, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "num_items_in_batch": MASK.sum(),
        "old_logps": (old * MASK).sum(1),
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(mock, None, inputs)  # type: ignore[attr-defined]
    return loss


def same(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    """Values, and slopes on the policy's log-probs."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    slopes = [torch.autograd.grad(loss, leaf)[0] for loss in (ours, theirs)]
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("loss_type", "reduction"),
    [
        ("grpo", "sequence"),
        ("bnpo", "token"),
        ("dapo", "token"),
        ("dr_grpo", "constant"),
    ],
)
def test_grpo(loss_type: str, reduction: str, level: str, beta: float) -> None:
    logps = draw()
    leaf = logps[0].requires_grad_()
    a = advantages("grpo", REWARDS).flatten()
    theirs = trl_loss(
        trl.GRPOTrainer, logps, a, loss_type=loss_type, beta=beta, epsilon_high=0.28,
        importance_sampling_level=level,
    )  # fmt: skip
    ours = token_loss(
        "grpo", *logps, a, MASK, reduction=reduction, level=level, beta=beta, clip=0.2,
        clip_high=0.28, max_length=MAX_LENGTH if reduction == "constant" else None,
    )  # fmt: skip
    same(ours, theirs, leaf)


def test_rloo() -> None:
    logps = draw()
    leaf = logps[0].requires_grad_()
    a = advantages("rloo", REWARDS).flatten()
    for high in (0.2, 5.0):
        theirs = trl_loss(trl.RLOOTrainer, logps, a, epsilon_high=high)
        same(token_loss("rloo", *logps, a, MASK, clip_high=high), theirs, leaf)


def test_advantages_as_the_trainers_write_them() -> None:
    """The lines of `_generate_and_score_completions`, which cannot be called alone."""
    size = REWARDS.shape[1]
    baselines = (REWARDS.nansum(1, keepdim=True) - REWARDS) / (size - 1)
    torch.testing.assert_close(advantages("rloo", REWARDS), REWARDS - baselines)
    centred = REWARDS - REWARDS.nanmean(1, keepdim=True)
    theirs = centred / (REWARDS.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(advantages("grpo", REWARDS), theirs, rtol=1e-13, atol=0)
    torch.testing.assert_close(advantages("dr_grpo", REWARDS), centred, rtol=1e-13, atol=0)
