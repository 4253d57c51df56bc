"""What holds for every objective: slopes by finite differences, one formula on both paths, finite
values at the ends, arrays and tensors alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from objectives.cases import CASES, Case
from torch import Tensor

from pyengine import objectives
from pyengine.errors import ConfigError
from pyengine.objectives.available import OBJECTIVES
from pyengine.objectives.core.sequence import SequenceObjective


def case_id(case: Case) -> str:
    return str(case)


def test_every_objective_has_a_case() -> None:
    named = {cls.name for cls in OBJECTIVES if issubclass(cls, SequenceObjective)}
    assert {case.name for case in CASES} == named


@pytest.mark.parametrize("case", [c for c in CASES if not c.constant], ids=case_id)
def test_slopes_are_those_of_finite_differences(case: Case) -> None:
    """Central differences of the summed loss in float64, one input at a time."""
    given = case.draw(5)
    for name in case.leaves():
        leaf = given[name].clone().requires_grad_()
        case.loss(given | {name: leaf}).sum().backward()
        assert leaf.grad is not None
        step = 1e-5
        for i in range(5):
            moved = [given[name].clone() for _ in range(2)]
            moved[0][i] += step
            moved[1][i] -= step
            up, down = (case.loss(given | {name: m}).sum() for m in moved)
            expected = ((up - down) / (2 * step)).item()
            assert leaf.grad[i].item() == pytest.approx(expected, rel=2e-6, abs=2e-8), (name, i)


def gradients(case: Case, given: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: given[name].clone().requires_grad_() for name in case.leaves()}
    losses = case.loss(given | leaves)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach(), [leaf.grad for leaf in leaves.values() if leaf.grad is not None]


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("count", [1, 16, 33])
def test_float32_gives_what_float64_gives(case: Case, count: int) -> None:
    """On the same inputs, which float32 holds: the fused kernel, where the loss has terms."""
    narrow = {name: value.float() for name, value in case.draw(count, seed=1).items()}
    wide = {name: value.double() for name, value in narrow.items()}
    losses, slopes = gradients(case, narrow)
    exact, exact_slopes = gradients(case, wide)
    assert losses.dtype == torch.float32
    assert exact.dtype == torch.float64
    torch.testing.assert_close(losses.double(), exact, rtol=2e-5, atol=2e-5)
    for slope, exact_slope in zip(slopes, exact_slopes, strict=True):
        torch.testing.assert_close(slope.double(), exact_slope, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_log_ratios_of_1e4_stay_finite(case: Case, dtype: torch.dtype, size: float) -> None:
    given = {name: value.to(dtype) for name, value in case.draw(4).items()}
    for name in case.leaves():
        moved = given | {name: given[name] + size}
        losses, slopes = gradients(case, moved)
        assert losses.isfinite().all(), name
        assert all(slope.isfinite().all() for slope in slopes), name


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_arrays_are_taken_as_tensors_are(case: Case) -> None:
    given = case.draw(6)
    arrays = {name: value.numpy() for name, value in given.items()}
    assert all(isinstance(a, np.ndarray) for a in arrays.values())
    assert torch.equal(case.loss(arrays), case.loss(given))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_order_of_the_examples_does_not_matter(case: Case) -> None:
    given = case.draw(7)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    losses, turned = case.loss(given), case.loss({k: v[order] for k, v in given.items()})
    expected = losses if losses.dim() == 0 or case.by_rank else losses[order]
    torch.testing.assert_close(turned, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_hyperparameter_is_checked(case: Case) -> None:
    cls = OBJECTIVES.class_of(case.name)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        assert "rule" in field.metadata, field.name
        with pytest.raises(ConfigError) as caught:
            objectives.get(case.name, **{field.name: float("nan")})
        assert str(caught.value).startswith(f"[{case.name}] {field.name} must be ")
