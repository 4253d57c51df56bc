"""The second half against TRL 1.16's own code: DPOTrainer's losses as in test_trl_a, and the loss
methods of CPOTrainer and ORPOTrainer on given log-probs. Where TRL differs, the test says how.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine.objectives import pairwise_loss, pointwise_loss

pytest.importorskip("trl", reason="TRL, a peer to compare with, is not installed")

from objectives.core.test_trl_a import TYPES, Batch, agree, ours, theirs

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"))


@TYPES
@pytest.mark.parametrize(
    ("name", "options", "loss_type", "settings"),
    [
        ("hinge", {}, "hinge", {}),
        ("nca_pair", {}, "nca_pair", {}),
        ("bco_pair", {"beta": 0.4}, "bco_pair", {"beta": 0.4}),
        ("apo_zero", {}, "apo_zero", {}),
        ("apo_down", {"beta": 0.3}, "apo_down", {"beta": 0.3}),
        ("aot", {"label_smoothing": 0.2}, "aot", {"label_smoothing": 0.2}),
        ("aot", {"paired": False}, "aot_unpaired", {}),
        ("discopop", {"beta": 0.1, "tau": 0.2}, "discopop",
         {"args": SimpleNamespace(discopop_tau=0.2)}),
        ("sigmoid_norm", {"beta": 2.0}, "sigmoid_norm", {"beta": 2.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_dpo_trainer(
    name: str,
    options: dict[str, Any],
    loss_type: str,
    settings: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    """Equal, the gradient through the sort of "aot" included."""
    batch = Batch(dtype)
    agree(ours(batch, name, **options), theirs(batch, loss_type, **settings), batch)


def test_exo_pair() -> None:
    """In float32: TRL takes the logarithms of eps in that, whatever the log-probs are."""
    batch = Batch(torch.float32)
    found = theirs(batch, "exo_pair", label_smoothing=1e-3)
    agree(ours(batch, "exo_pair", eps=1e-3), found, batch)


def test_sft() -> None:
    """TRL's sft is our NLL of the chosen responses, averaged over the batch's tokens; the average
    by example differs, as lengths do.
    """
    batch = Batch(torch.float64)
    loss, gradient = theirs(batch, "sft")
    logps = batch.policy.sum(1)[:4].requires_grad_()
    given = {"logps": logps, "lengths": batch.lengths[:4]}
    found = pointwise_loss("nll", **given, average="batch").mean()
    (slopes,) = torch.autograd.grad(found, logps)
    assert found.item() == pytest.approx(loss, rel=1e-13)
    expected = torch.cat([slopes, torch.zeros_like(slopes)])[:, None] * batch.mask
    torch.testing.assert_close(gradient * batch.mask, expected, rtol=1e-12, atol=1e-14)
    by_example = pointwise_loss("nll", **given, average="example").mean()
    assert abs(by_example.item() - loss) > 1e-2


def cpo_trainer(**settings: Any) -> Any:
    """One whose forward pass gives the log-probs and the NLL that a test chooses."""
    from trl.experimental.cpo import CPOTrainer

    trainer = object.__new__(CPOTrainer)
    defaults = {"alpha": 0.0, "beta": 0.1, "label_smoothing": 0.0, "loss_type": "sigmoid"}
    trainer.__dict__.update(accelerator=ACCELERATOR, **(defaults | settings))
    return trainer


def summed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs and lengths of the chosen and the rejected, (4,) each."""
    batch = Batch(torch.float64)
    return *batch.policy.sum(1).chunk(2), *batch.lengths.double().chunk(2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cpo(smoothing: float) -> None:
    """TRL adds cpo_alpha times the NLL over all chosen tokens of the batch: "batch"."""
    chosen, rejected, n, _ = summed()
    losses, *_ = cpo_trainer(label_smoothing=smoothing).cpo_loss(chosen, rejected)
    expected = losses.mean() - 0.7 * chosen.sum() / n.sum()
    options = {"alpha": 0.7, "label_smoothing": smoothing, "nll_average": "batch"}
    found = pairwise_loss("cpo", chosen, rejected, chosen_lengths=n, **options).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo(smoothing: float) -> None:
    """TRL's simpo_gamma is our gamma: it divides by beta first and multiplies by it after."""
    chosen, rejected, n, m = summed()
    trainer = cpo_trainer(loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=smoothing)
    expected, *_ = trainer.cpo_loss(chosen / n, rejected / m)
    found = pairwise_loss(
        "simpo", chosen, rejected, chosen_lengths=n, rejected_lengths=m, beta=2.0, gamma=0.5,
        label_smoothing=smoothing,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.25, -0.5])
def test_alphapo(alpha: float) -> None:
    """TRL makes probabilities first, p = exp(a): the same while p does not underflow."""
    chosen, rejected, n, m = summed()
    trainer = cpo_trainer(loss_type="simpo", simpo_gamma=0.3, beta=2.5, alpha=alpha)
    expected, *_ = trainer.cpo_loss(chosen / n, rejected / m)
    found = pairwise_loss(
        "alphapo", chosen, rejected, chosen_lengths=n, rejected_lengths=m, beta=2.5, gamma=0.3,
        alpha=alpha,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_orpo() -> None:
    """TRL's method gives beta log sigmoid(log odds ratio) in float32, of averaged log-probs, and
    subtracts it from the NLL; its NLL counts the prompt's tokens, so that it is compared apart.
    """
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected, n, m = summed()
    trainer = object.__new__(ORPOTrainer)
    trainer.__dict__.update(accelerator=ACCELERATOR, beta=0.4)
    ratios, *_ = trainer.odds_ratio_loss(chosen / n, rejected / m)
    found = pairwise_loss("orpo", chosen, rejected, chosen_lengths=n, rejected_lengths=m, lam=0.4)
    torch.testing.assert_close(found + chosen / n, -ratios.double(), rtol=1e-5, atol=1e-6)
