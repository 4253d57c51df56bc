"""One pair small enough for arithmetic on paper, and what a loss says of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from pyengine.objectives import pairwise_loss

# log-ratios 2 and -1, h = 3
PAIR = {
    "chosen_logps": -10.0,
    "rejected_logps": -11.0,
    "ref_chosen_logps": -12.0,
    "ref_rejected_logps": -10.0,
}
AT_REFERENCE = PAIR | {"ref_chosen_logps": -10.0, "ref_rejected_logps": -11.0}
# With beta 0.5, z = 1.5: log(1 + e^-1.5), log(1 + e^1.5) and sigmoid(1.5).
SOFTPLUS_MINUS, SOFTPLUS_PLUS, SIGMOID = 0.20141328, 1.70141328, 0.81757448


class Answer(NamedTuple):
    """Of one pair: the loss, and its slopes in the log-probs under the policy."""

    loss: float
    slopes: dict[str, float]

    @property
    def chosen(self) -> float:
        return self.slopes["chosen_logps"]

    @property
    def rejected(self) -> float:
        return self.slopes["rejected_logps"]


def answer(name: str, given: dict[str, float] = PAIR, **options: Any) -> Answer:
    """Of the pair `given`, in float64; further log-probs and inputs are among the options."""
    numbers = given | {k: v for k, v in options.items() if k.endswith(("_logps", "_lengths"))}
    tensors = {k: torch.tensor([v], dtype=torch.float64) for k, v in numbers.items()}
    leaves = {
        k: v.requires_grad_()
        for k, v in tensors.items()
        if k.endswith("_logps") and not k.startswith(("ref_", "current_", "base_"))
    }
    loss = pairwise_loss(name, **{**options, **tensors})
    assert loss.shape == (1,)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    slopes = {k: 0.0 if v.grad is None else v.grad.item() for k, v in leaves.items()}
    return Answer(loss.item(), slopes)


def near(value: float) -> Any:
    """To the eight digits that a docstring shows."""
    return pytest.approx(value, rel=1e-8, abs=1e-8)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs(seed: int = 0, count: int = 9, spread: float = 3.0) -> dict[str, torch.Tensor]:
    """Pairs of log-probs of a real run's size, float64 (count,)."""
    generator = torch.Generator().manual_seed(seed)
    policy = -torch.rand(2, count, generator=generator, dtype=torch.float64) * 200 - 5
    reference = policy + spread * torch.randn(2, count, generator=generator, dtype=torch.float64)
    return dict(zip(PAIR, [*policy, *reference], strict=True))


def swapped(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same pairs with chosen and rejected exchanged."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    words = {name: next(word for word in other if word in name) for name in given}
    return {name: given[name.replace(word, other[word])] for name, word in words.items()}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
