"""KTO against TRL 1.16's own loss, on given log-probs: value and gradient on every token."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pyengine import objectives
from pyengine.objectives import LossInputs

pytest.importorskip("trl", reason="TRL, a peer to compare with, is not installed")

from objectives.core.test_trl_a import TYPES, Batch, agree

LABELS = [True, False, False, True, True, False, True, False]
WEIGHTS = {"desirable_weight": 1.3, "undesirable_weight": 0.8}


def theirs(batch: Batch, kl_policy: Tensor, kl_reference: Tensor) -> tuple[float, Tensor]:
    """The trainer without its constructor; its model returns the mismatched responses first."""
    from trl.trainer.kto_trainer import KTOTrainer

    trainer = object.__new__(KTOTrainer)
    settings = {
        "beta": 0.2,
        "loss_type": "kto",
        "calculate_KL": True,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "accelerator": SimpleNamespace(device="cpu", gather_for_metrics=lambda t: t),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "model": SimpleNamespace(training=True),
        **WEIGHTS,
    }
    for name, value in settings.items():
        setattr(trainer, name, value)
    tokens = batch.policy.clone().requires_grad_()
    zeros = torch.zeros_like(tokens)
    calls = iter([kl_policy, tokens])
    prompt = torch.zeros(len(tokens), 1, dtype=torch.int64)
    mask = torch.cat([prompt, batch.mask.long()], 1)
    given = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "KL_input_ids": torch.zeros_like(mask),
        "KL_attention_mask": torch.ones_like(mask),
        "KL_completion_mask": mask,
        "label": torch.tensor(LABELS),
        "ref_logps": batch.reference.sum(1),
        "ref_KL_logps": kl_reference.sum(1),
    }
    loss = trainer._compute_loss(
        lambda **_: SimpleNamespace(log_probs=next(calls), entropy=zeros, mean_logits=zeros),
        given,
        False,
    )
    loss.backward()
    assert tokens.grad is not None
    return loss.item(), tokens.grad


def ours(batch: Batch, z0: float) -> tuple[float, Tensor]:
    labels = torch.tensor(LABELS).to(batch.policy.dtype)
    none = torch.zeros(0, dtype=torch.int64)
    inputs = LossInputs(
        policy_token_logps=batch.policy[batch.mask],
        reference_token_logps=batch.reference[batch.mask],
        cu_seqlens=torch.cat([none.new_zeros(1), batch.lengths.cumsum(0)]),
        chosen=none,
        rejected=none,
        probability=labels[:0],
        weight=torch.ones_like(labels),
        total_weight=8.0,
        columns={"labels": labels},
        mismatched_kl=z0,
    )
    output = objectives.get("kto", beta=0.2, **WEIGHTS)(inputs)
    gradient = torch.zeros_like(batch.policy)
    gradient[batch.mask] = output.dlogps
    return output.loss.item(), gradient


@TYPES
@pytest.mark.parametrize("shift", [0.3, -2.0], ids=["positive", "clamped"])
def test_kto_trainer(dtype: torch.dtype, shift: float) -> None:
    """Equal, z0 included: TRL's is the mean over the batch's mismatched responses, at least 0."""
    batch = Batch(dtype)
    kl_reference = batch.reference
    kl_policy = kl_reference + shift * batch.mask
    z0 = max(0.0, (kl_policy - kl_reference).sum(1).double().mean().item())
    assert (z0 > 0) == (shift > 0)
    agree(ours(batch, z0), theirs(batch, kl_policy, kl_reference), batch)
