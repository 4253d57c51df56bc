"""Every pointwise objective as the engine calls it, packed, against its plain function."""

from __future__ import annotations

import pytest
import torch
from objectives.cases import CASES, Case
from torch import Tensor

from pyengine.objectives import LossInputs, get
from pyengine.objectives.available import OBJECTIVES

LENGTHS = torch.tensor([3, 1, 2, 4, 7, 5])
COUNT, TOKENS = len(LENGTHS), int(LENGTHS.sum())


def pack(case: Case, weight: Tensor, dtype: torch.dtype) -> tuple[LossInputs, dict[str, Tensor]]:
    """A batch, and the same in float64 as arguments of the plain function."""
    g = torch.Generator().manual_seed(3)
    policy = -4 * torch.rand(TOKENS, generator=g, dtype=dtype)
    reference = policy + torch.randn(TOKENS, generator=g, dtype=dtype)
    columns = {name: draw(COUNT, g).to(dtype) for name, draw in case.inputs.items()}
    given = {name: column.double() for name, column in columns.items()}
    given["lengths"] = LENGTHS.double()
    for name, tokens in (("logps", policy), ("ref_logps", reference)):
        given[name] = torch.stack([t.double().sum() for t in tokens.split(LENGTHS.tolist())])
    shift = columns.pop("z0", None)
    columns.pop("lengths", None)
    if shift is not None:
        given["z0"] = torch.full_like(given["logps"], 0.7)
    none = torch.zeros(0, dtype=torch.int64)
    inputs = LossInputs(
        policy_token_logps=policy,
        reference_token_logps=reference,
        cu_seqlens=torch.cat([none.new_zeros(1), LENGTHS.cumsum(0)]),
        chosen=none,
        rejected=none,
        probability=torch.zeros(0, dtype=dtype),
        weight=weight.to(dtype),
        total_weight=weight.sum().item(),
        columns=columns,
        mismatched_kl=None if shift is None else 0.7,
    )
    wanted = {"logps", "ref_logps", *OBJECTIVES.class_of(case.name).inputs}  # type: ignore[attr-defined]
    return inputs, {name: value for name, value in given.items() if name in wanted}


# Where tokens' whole distributions count, tests/engine/learn/test_objective_updates.py has it.
PACKED = [c for c in CASES if not c.is_pairwise and not c.needs_side_outputs]


@pytest.mark.parametrize("case", PACKED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_token_gradients_are_those_of_the_plain_function(
    case: Case, dtype: torch.dtype
) -> None:
    scalar = OBJECTIVES.class_of(case.name).scalar  # type: ignore[attr-defined]
    weight = torch.ones(COUNT) if scalar else torch.linspace(0.5, 2.0, COUNT)
    inputs, given = pack(case, weight, dtype)
    leaf = given["logps"].requires_grad_()
    losses = case.loss(given)
    loss = losses if losses.dim() == 0 else (weight.double() * losses).sum() / weight.sum()
    (slopes,) = torch.autograd.grad(loss, leaf)

    output = get(case.name, **case.options)(inputs)
    rtol, atol = (2e-5, 2e-5) if dtype == torch.float32 else (1e-11, 1e-11)
    torch.testing.assert_close(output.loss.double(), loss.detach(), rtol=rtol, atol=atol)
    assert output.dlogps.dtype == dtype
    expected = slopes.repeat_interleave(LENGTHS)
    torch.testing.assert_close(output.dlogps.double(), expected, rtol=rtol, atol=atol)
    assert all(len(values) == COUNT for values in output.metrics.values())
