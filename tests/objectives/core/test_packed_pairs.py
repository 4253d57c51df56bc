"""Every pairwise objective as the engine calls it, packed, against its plain function."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from objectives.cases import CASES, Case
from torch import Tensor

from pyengine import objectives
from pyengine.errors import RequestError
from pyengine.objectives import LossInputs
from pyengine.objectives.available import OBJECTIVES
from pyengine.objectives.core.sequence import SequenceObjective

# A weight of the pair itself is no column of a response: in the engine it comes as two of those.
# Where tokens' whole distributions count, tests/engine/learn/test_objective_updates.py has it.
PACKED = [
    c
    for c in CASES
    if c.is_pairwise
    and "weight" not in c.inputs
    and not c.needs_side_outputs
    and not c.weighs_tokens
]


def operands_of(case: Case) -> tuple[str, ...]:
    cls = OBJECTIVES.class_of(case.name)
    assert issubclass(cls, SequenceObjective)
    return cls.operands


def pack(case: Case, given: dict[str, Tensor], weight: Tensor, dtype: torch.dtype) -> LossInputs:
    """The same numbers as tokens: response k B + c is operand k of comparison c, its log-prob
    spread evenly over its tokens.
    """
    operands, count = operands_of(case), len(weight)
    three = torch.full((count,), 3)
    lengths = torch.cat([given.get(f"{o}_lengths", three) for o in operands]).long()

    def spread(names: list[str]) -> Tensor:
        sums = torch.cat([given.get(name, torch.zeros(count)).double() for name in names])
        return (sums / lengths).repeat_interleave(lengths).to(dtype)

    columns, models = {}, set()
    for name in case.inputs:
        operand = next((o for o in operands if name.startswith(f"{o}_")), None)
        what = name.removeprefix(f"{operand}_")
        if operand is not None and what not in ("logps", "lengths"):
            values = [given.get(f"{o}_{what}", torch.full((count,), torch.nan)) for o in operands]
            columns[what] = torch.cat(values).to(dtype)
        models |= {name.split("_")[0]} & {"base", "current"}
    further = torch.arange(2, len(operands)) * count
    return LossInputs(
        policy_token_logps=spread([f"{o}_logps" for o in operands]),
        reference_token_logps=spread([f"ref_{o}_logps" for o in operands]),
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        chosen=torch.arange(count),
        rejected=torch.arange(count) + count,
        probability=given.get("target", torch.ones(count)).to(dtype),
        weight=weight.to(dtype),
        total_weight=weight.sum().item(),
        auxiliary=torch.arange(count)[:, None] + further if len(further) else None,
        columns=columns,
        model_token_logps={m: spread([f"{m}_{o}_logps" for o in operands]) for m in models},
    )


def sums(inputs: LossInputs, tokens: Tensor) -> Tensor:
    return torch.stack([t.double().sum() for t in tokens.split(inputs.lengths.tolist())])


@pytest.mark.parametrize("case", PACKED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_token_gradients_are_those_of_the_plain_function(
    case: Case, dtype: torch.dtype
) -> None:
    """The plain function in float64, given what the tokens add up to."""
    count, operands = 6, operands_of(case)
    given = {k: v.to(dtype).double() for k, v in case.draw(count, seed=3).items()}
    whole = case.by_rank or OBJECTIVES.class_of(case.name).scalar  # type: ignore[attr-defined]
    weight = torch.ones(count) if whole else torch.linspace(0.5, 2.0, count)
    inputs = pack(case, given, weight, dtype)
    rows = [(f"{o}_logps", inputs.policy_token_logps) for o in operands]
    rows += [(f"ref_{o}_logps", inputs.reference_token_logps) for o in operands]
    rows += [(f"{m}_{o}_logps", t) for m, t in inputs.model_token_logps.items() for o in operands]
    for i, (name, tokens) in enumerate(rows):
        if name in given:
            at = i % len(operands) * count
            given[name] = sums(inputs, tokens)[at : at + count]
    leaves = {name: given[name].requires_grad_() for name in case.leaves()}
    losses = case.loss(given)
    loss = losses if losses.dim() == 0 else (weight.double() * losses).sum() / weight.sum()
    loss.backward()  # type: ignore[no-untyped-call]
    slopes = torch.cat([leaves[f"{o}_logps"].grad for o in operands])

    output = objectives.get(case.name, **case.options)(inputs)
    rtol, atol = (2e-5, 2e-5) if dtype == torch.float32 else (1e-10, 1e-10)
    torch.testing.assert_close(output.loss.double(), loss.detach(), rtol=rtol, atol=atol)
    expected = slopes.repeat_interleave(inputs.lengths)
    assert output.dlogps.dtype == dtype
    torch.testing.assert_close(output.dlogps.double(), expected, rtol=rtol, atol=atol)


def packed(name: str) -> LossInputs:
    case = next(c for c in PACKED if c.name == name)
    return pack(case, case.draw(4), torch.ones(4), torch.float64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xpo", "[xpo] needs the explore response of every comparison: give "
                "Comparison(auxiliary=...): explore"),
        ("srpo", "[srpo] needs the chosen_from_rejected response of every comparison: give "
                 "Comparison(auxiliary=...): chosen_from_rejected, rejected_from_chosen, "
                 "chosen_from_chosen, rejected_from_rejected"),
    ],
)  # fmt: skip
def test_further_responses_are_asked_for(name: str, message: str) -> None:
    inputs = packed(name)
    assert inputs.auxiliary is not None
    unknown = inputs.auxiliary.clone()
    unknown[2, -1] = -1
    for auxiliary in (None, torch.cat([inputs.auxiliary] * 2, 1), unknown):
        with pytest.raises(RequestError) as caught:
            objectives.get(name)(dataclasses.replace(inputs, auxiliary=auxiliary))
        assert str(caught.value) == message


def test_one_further_response_may_be_a_flat_row() -> None:
    inputs = packed("xpo")
    assert inputs.auxiliary is not None
    flat = dataclasses.replace(inputs, auxiliary=inputs.auxiliary[:, 0])
    xpo = objectives.get("xpo", alpha=0.5)
    assert torch.equal(xpo(flat).dlogps, xpo(inputs).dlogps)


def test_columns_are_asked_for() -> None:
    with pytest.raises(RequestError) as caught:
        objectives.get("rebel")(dataclasses.replace(packed("rebel"), columns={}))
    assert str(caught.value) == (
        "[rebel] needs chosen_scores of every comparison: give it in Feedback.columns"
    )


@pytest.mark.parametrize(("name", "model"), [("inpo", "current"), ("spin", "base")])
def test_models_are_asked_for(name: str, model: str) -> None:
    inputs = dataclasses.replace(packed(name), model_token_logps={})
    options = {"mixture": 0.5} if name == "spin" else {}
    with pytest.raises(RequestError) as caught:
        objectives.get(name, **options)(inputs)
    assert str(caught.value) == (
        f"[{name}] needs log-probs under a model called {model!r} but got none"
    )


@pytest.mark.parametrize(("name", "scale"), [("spin", "lam"), ("dno", "eta"), ("bfpo", "tau")])
def test_rewards_are_scaled_by_what_plays_beta(name: str, scale: str) -> None:
    inputs = packed(name)
    ratio = sums(inputs, inputs.policy_token_logps) - sums(inputs, inputs.reference_token_logps)
    metrics = objectives.get(name, **{scale: 0.25})(inputs).metrics
    torch.testing.assert_close(metrics["rewards/chosen"], 0.25 * ratio[:4], rtol=1e-12, atol=1e-12)
