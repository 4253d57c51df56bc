"""The contract LossInputs -> LossOutput: token gradients, weights, and parts that add up."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pyengine.errors import RequestError
from pyengine.objectives import DPO, LossInputs

# Four responses of 3, 1, 2 and 4 tokens; three comparisons, response 0 in two of them.
LENGTHS = [3, 1, 2, 4]


def inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)
    policy = -torch.rand(10, generator=generator, dtype=torch.float64) * 4
    noise = torch.randn(10, generator=generator, dtype=torch.float64) * 0.5
    return LossInputs(
        policy_token_logps=policy.to(dtype),
        reference_token_logps=(policy + noise).to(dtype),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0),
        chosen=torch.tensor([0, 0, 2]),
        rejected=torch.tensor([1, 3, 3]),
        probability=torch.tensor([1.0, 0.8, 1.0], dtype=dtype),
        weight=torch.tensor([1.0, 2.0, 0.5], dtype=dtype),
        total_weight=3.5,
    )


def by_hand(x: LossInputs, beta: float) -> tuple[float, list[float]]:
    """Loss and the gradient on each response's summed log-prob, in plain Python.

    z_c = beta ((policy - reference)_chosen - (policy - reference)_rejected)
    d loss_c / d chosen = beta (sigmoid(z_c) - p_c) = - d loss_c / d rejected
    """
    ratio = [
        (x.policy_token_logps[a:b].sum() - x.reference_token_logps[a:b].sum()).item()
        for a, b in zip(x.cu_seqlens[:-1], x.cu_seqlens[1:], strict=True)
    ]
    loss, gradient = 0.0, [0.0] * len(LENGTHS)
    columns = (t.tolist() for t in (x.chosen, x.rejected, x.probability, x.weight))
    for c, r, p, w in zip(*columns, strict=True):
        win = 1 / (1 + math.exp(-beta * (ratio[c] - ratio[r])))
        share = w / x.total_weight
        loss += share * (-p * math.log(win) - (1 - p) * math.log(1 - win))
        gradient[c] += share * beta * (win - p)
        gradient[r] -= share * beta * (win - p)
    return loss, gradient


def test_every_token_of_a_response_gets_its_response_coefficient():
    x = inputs()
    loss, gradient = by_hand(x, beta=0.3)
    output = DPO(beta=0.3)(x)
    expected = torch.tensor(gradient, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    assert output.loss.item() == pytest.approx(loss, rel=1e-13)
    torch.testing.assert_close(output.dlogps, expected, rtol=1e-12, atol=1e-15)


def test_gradient_is_zero_for_a_response_in_no_comparison():
    x = dataclasses.replace(inputs(), chosen=torch.tensor([0] * 3), rejected=torch.tensor([3] * 3))
    dlogps = DPO()(x).dlogps
    assert dlogps[3:6].tolist() == [0.0, 0.0, 0.0]  # responses 1 and 2
    assert (dlogps[:3] < 0).all()
    assert (dlogps[6:] > 0).all()


def test_gradient_has_the_log_probs_dtype_and_output_is_detached():
    output = DPO()(inputs(torch.float32))
    assert output.dlogps.dtype == torch.float32
    assert output.dlogps.shape == (10,)
    tensors = [output.loss, output.dlogps, *output.metrics.values()]
    assert not any(t.requires_grad for t in tensors)


def test_metrics_have_one_value_per_comparison():
    metrics = DPO(beta=0.1)(inputs()).metrics
    assert set(metrics) == {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    }
    assert {tuple(value.shape) for value in metrics.values()} == {(3,)}


def test_parts_add_up_to_the_whole():
    """Each comparison alone, divided by the whole batch's weight, gives its share of the loss."""
    x = inputs()
    whole = DPO(beta=0.2)(x)
    parts = [
        DPO(beta=0.2)(
            dataclasses.replace(
                x,
                **{
                    name: getattr(x, name)[c : c + 1]
                    for name in ("chosen", "rejected", "probability", "weight")
                },
            )
        )
        for c in range(3)
    ]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(sum(p.dlogps for p in parts), whole.dlogps, rtol=1e-13, atol=1e-17)


def test_a_comparison_of_weight_two_counts_as_two():
    x = inputs()
    twice = [0, 1, 1, 2]
    repeated = dataclasses.replace(
        x,
        chosen=x.chosen[twice],
        rejected=x.rejected[twice],
        probability=x.probability[twice],
        weight=torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64),
    )
    one, other = DPO()(x), DPO()(repeated)
    assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-14)
    torch.testing.assert_close(other.dlogps, one.dlogps, rtol=1e-13, atol=1e-17)


def test_long_sums_keep_small_differences():
    """2,000 tokens near -0.25 add up to about -500. One token that differs by 1e-5 gives a margin
    of beta * 1e-5 = 1e-6, far below what a float32 of size 500 resolves (3e-5).
    """
    policy = torch.full((4000,), -0.25)
    reference = policy.clone()
    reference[7] -= 1e-5
    x = LossInputs(
        policy_token_logps=policy,
        reference_token_logps=reference,
        cu_seqlens=torch.tensor([0, 2000, 4000]),
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        probability=torch.ones(1),
        weight=torch.ones(1),
        total_weight=1.0,
    )
    margin = DPO(beta=0.1)(x).metrics["rewards/margins"].item()
    exact = 0.1 * (policy[7].double() - reference[7].double()).item()
    assert exact == pytest.approx(1e-6, rel=1e-2)
    assert margin == pytest.approx(exact, rel=1e-6)


def test_equal_policy_and_reference_give_margins_of_exactly_zero():
    x = inputs(torch.float32)
    same = dataclasses.replace(x, reference_token_logps=x.policy_token_logps.clone())
    output = DPO()(same)
    assert output.metrics["rewards/margins"].tolist() == [0.0, 0.0, 0.0]


def test_missing_reference_is_refused():
    with pytest.raises(RequestError) as caught:
        DPO()(dataclasses.replace(inputs(), reference_token_logps=None))
    assert str(caught.value) == "[dpo] needs reference log-probs but the engine has no reference"
