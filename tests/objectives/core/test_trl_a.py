"""Losses and token gradients against TRL's own: DPOTrainer's loss method on given log-probs.

The trainer is made without its constructor; the model is a function that returns log-probs.
Differences are in the tests' docstrings.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine import objectives
from pyengine.objectives import LossInputs

trl = pytest.importorskip("trl", reason="TRL, a peer to compare with, is not installed")

LENGTHS = {"chosen": [3, 5, 2, 7], "rejected": [4, 1, 6, 2]}
EVEN = {"chosen": [5] * 4, "rejected": [5] * 4}


class Batch:
    """Eight responses, four chosen and four rejected: policy, reference, log sum p^2, as tokens."""

    def __init__(self, dtype: torch.dtype, lengths: dict[str, list[int]] = LENGTHS) -> None:
        self.lengths = torch.tensor([*lengths["chosen"], *lengths["rejected"]])
        self.mask = torch.arange(int(self.lengths.max())) < self.lengths[:, None]  # (8, L)
        g = torch.Generator().manual_seed(0)
        shape = self.mask.shape
        policy = -torch.rand(shape, generator=g, dtype=torch.float64) * 4
        reference = policy + 0.5 * torch.randn(shape, generator=g, dtype=torch.float64)
        squares = -torch.rand(shape, generator=g, dtype=torch.float64) * 4
        self.policy, self.reference, self.squares = (
            (t * self.mask).to(dtype) for t in (policy, reference, squares)
        )


def theirs(
    batch: Batch, *loss_types: str, of_reference: Tensor | None = None, **settings: Any
) -> tuple[float, Tensor]:
    """TRL's loss and its gradient on the policy's tokens (8, L).

    of_reference  (8, L) weights of the reference's tokens, whose sums TRL is given
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = object.__new__(DPOTrainer)
    same = SimpleNamespace(device="cpu", gather=lambda t: t, gather_for_metrics=lambda t: t)
    defaults = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "ld_alpha": None,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "loss_types": list(loss_types),
        "loss_weights": [1.0] * len(loss_types),
        "accelerator": same,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (defaults | settings).items():
        setattr(trainer, name, value)
    tokens = batch.policy.clone().requires_grad_()
    zeros = torch.zeros_like(tokens)
    outputs = SimpleNamespace(
        log_probs=tokens,
        log_sum_sq_probs=batch.squares,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
    )
    trainer.model = SimpleNamespace(training=True)
    prompt = torch.zeros(len(tokens), 1, dtype=torch.int64)
    mask = torch.cat([prompt, batch.mask.long()], 1)
    reference = batch.reference if of_reference is None else of_reference * batch.reference
    ref_chosen, ref_rejected = reference.sum(1).chunk(2)
    given = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    loss = trainer._compute_loss(lambda **_: outputs, given, False)
    loss.backward()
    return loss.item(), tokens.grad


def ours(
    batch: Batch, name: str, columns: dict[str, Tensor] | None = None, **options: Any
) -> tuple[float, Tensor]:
    """Ours, through the packed inputs of the engine."""
    ones = torch.ones(4, dtype=batch.policy.dtype)
    inputs = LossInputs(
        policy_token_logps=batch.policy[batch.mask],
        reference_token_logps=batch.reference[batch.mask],
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), batch.lengths.cumsum(0)]),
        chosen=torch.arange(4),
        rejected=torch.arange(4, 8),
        probability=ones,
        weight=ones,
        total_weight=4.0,
        columns=columns or {},
        side={"sum_squares": batch.squares.exp()[batch.mask]},
    )
    output = objectives.get(name, **options)(inputs)
    gradient = torch.zeros_like(batch.policy)
    gradient[batch.mask] = output.dlogps
    return output.loss.item(), gradient


def agree(
    one: tuple[float, Tensor], two: tuple[float, Tensor], batch: Batch, scale: float = 1.0
) -> None:
    """`one` is `scale` times `two`, on the tokens that are there."""
    tolerance = 1e-12 if batch.policy.dtype == torch.float64 else 2e-5
    assert one[0] == pytest.approx(scale * two[0], rel=tolerance, abs=tolerance)
    torch.testing.assert_close(one[1], scale * two[1] * batch.mask, rtol=tolerance, atol=tolerance)
    assert one[1].abs().max() > 1e-3


TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@TYPES
def test_sigmoid_is_dpo_and_ignores_label_smoothing(dtype: torch.dtype) -> None:
    """TRL's "sigmoid" takes a label_smoothing and does nothing with it; ours is then cDPO."""
    batch = Batch(dtype)
    agree(ours(batch, "dpo"), theirs(batch, "sigmoid"), batch)
    smoothed = theirs(batch, "sigmoid", label_smoothing=0.2)
    agree(ours(batch, "dpo"), smoothed, batch)
    assert abs(ours(batch, "dpo", label_smoothing=0.2)[0] - smoothed[0]) > 1e-3


@TYPES
def test_ipo_is_on_averages(dtype: torch.dtype) -> None:
    batch = Batch(dtype)
    agree(ours(batch, "ipo", beta=0.5), theirs(batch, "ipo", beta=0.5), batch)


@TYPES
@pytest.mark.parametrize("flip_rate", [0.0, 0.1, 0.45])
def test_robust_is_rdpo(dtype: torch.dtype, flip_rate: float) -> None:
    batch = Batch(dtype)
    expected = theirs(batch, "robust", beta=0.3, label_smoothing=flip_rate)
    agree(ours(batch, "rdpo", beta=0.3, flip_rate=flip_rate), expected, batch)


@TYPES
def test_sppo_hard_is_twice_ours(dtype: torch.dtype) -> None:
    """TRL leaves out the 1/2 of the published code, which is our default."""
    batch = Batch(dtype)
    expected = theirs(batch, "sppo_hard", beta=0.2)
    agree(ours(batch, "sppo", beta=0.2, halve=False), expected, batch)
    agree(ours(batch, "sppo", beta=0.2), expected, batch, scale=0.5)


@TYPES
@pytest.mark.parametrize(
    ("divergence", "their_name"), [("forward_kl", "forward_kl"), ("js", "js_divergence")]
)
def test_divergences(dtype: torch.dtype, divergence: str, their_name: str) -> None:
    batch = Batch(dtype)
    expected = theirs(batch, "sigmoid", beta=0.3, f_divergence_type=their_name)
    agree(ours(batch, "f_dpo", beta=0.3, divergence=divergence), expected, batch)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.7])
def test_alpha_divergence_counts_from_the_other_end(alpha: float) -> None:
    """TRL's coefficient is 1 minus the paper's alpha; it takes no float64."""
    batch = Batch(torch.float32)
    expected = theirs(
        batch,
        "sigmoid",
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=1 - alpha,
    )
    agree(ours(batch, "f_dpo", divergence="alpha", alpha=alpha), expected, batch)
    with pytest.raises(KeyError):
        theirs(Batch(torch.float64), "sigmoid", f_divergence_type="alpha_divergence")


@TYPES
def test_sigmoid_and_sft_is_dpo_nll_for_responses_of_one_length(dtype: torch.dtype) -> None:
    """TRL's likelihood is a mean over the batch's tokens, ours over each response's own: with
    unlike lengths they differ by the weight of a response, its length over the mean one.
    """
    even = Batch(dtype, EVEN)
    agree(ours(even, "dpo_nll"), theirs(even, "sigmoid", "sft"), even)
    ragged = Batch(dtype)
    chosen, lengths = ragged.policy.sum(1)[:4], ragged.lengths[:4]
    gap = (-chosen / lengths).mean() - (-chosen.sum() / lengths.sum())
    difference = ours(ragged, "dpo_nll")[0] - theirs(ragged, "sigmoid", "sft")[0]
    assert abs(gap.item()) > 1e-3
    assert difference == pytest.approx(gap.item(), rel=1e-4)


@TYPES
def test_use_weighting_is_weighted_dpo_without_a_clamp(dtype: torch.dtype) -> None:
    """WPO: exp of the mean of log p - log sum p^2, of both responses; TRL does not clamp it at 1,
    nor do we: the weights are the caller's.
    """
    batch = Batch(dtype)
    mean = ((batch.policy - batch.squares).sum(1) / batch.lengths).to(dtype)
    weight = torch.exp(mean)
    assert weight.max() > 1 > weight.min()
    expected = theirs(batch, "sigmoid", use_weighting=True)
    agree(ours(batch, "weighted_dpo", {"weight": weight}), expected, batch)
    agree(ours(batch, "wpo", clamp=False), expected, batch)


@TYPES
def test_ld_alpha_is_ld_dpo(dtype: torch.dtype) -> None:
    """TRL weighs the reference's tokens in another method: its sums are given weighed alike."""
    batch = Batch(dtype)
    shared = torch.minimum(*batch.lengths.chunk(2)).repeat(2)
    tail = torch.arange(batch.mask.shape[1]) >= shared[:, None]
    weights = torch.ones(tail.shape, dtype=dtype).masked_fill(tail, 0.3)
    expected = theirs(batch, "sigmoid", ld_alpha=0.3, of_reference=weights)
    agree(ours(batch, "ld_dpo", alpha=0.3), expected, batch)


def test_losses_start_where_trl_starts() -> None:
    """At policy == reference both are log 2, and TRL's metrics are ours."""
    batch = Batch(torch.float64)
    batch.reference = batch.policy
    for name, loss_type in (("dpo", "sigmoid"), ("rdpo", "robust"), ("f_dpo", "sigmoid")):
        assert ours(batch, name)[0] == pytest.approx(math.log(2), rel=1e-12)
        assert theirs(batch, loss_type)[0] == pytest.approx(math.log(2), rel=1e-12)
