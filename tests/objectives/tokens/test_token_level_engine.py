"""Token-level objectives as the engine calls them: what the plain function gives of those tokens,
advantages from rewards, and parts of a batch that add up to it bit for bit.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine.errors import ConfigError, RequestError
from pyengine.objectives import LossInputs, TokenObjective, advantages, get, token_loss

LENGTHS = [3, 1, 4, 5, 2, 0, 6, 1, 2]
GROUP = [0, 0, 0, 1, 2, 2, 2, 3, 3]
REWARDS = [0.3, 1.0, 0.3, 0.5, 0.2, 0.9, 0.1, 0.0, 1.0]
GREEDY = [0.5, 0.5, 0.5, 0.1, 0.2, 0.2, 0.2, 0.4, 0.4]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ppo", {"advantage_estimator": "rloo", "kl_coef": 0.1}),
    ("grpo", {}),
    ("grpo", {"beta": 0.0, "reduction": "token", "clip_high": 0.28}),
    ("grpo", {"reduction": "constant", "max_length": 8, "advantage_estimator": "dr_grpo"}),
    ("grpo", {"level": "sequence"}),
    ("rloo", {}),
    ("reinforce", {"advantage_estimator": "remax"}),
    ("reinforce", {"kl_coef": 0.2}),
    ("topr", {"baseline": 0.4}),
    ("nash_md", {}),
    ("nash_md", {"level": "token"}),
]
each_case = pytest.mark.parametrize(("name", "options"), CASES)


def part(groups: list[int], dtype: torch.dtype = torch.float64, **changes: Any) -> LossInputs:
    """These groups of the batch, as a micro-batch of it."""
    g = torch.Generator().manual_seed(3)
    policy = -torch.rand(sum(LENGTHS), generator=g)
    reference, sampler = (policy + 0.3 * torch.randn(sum(LENGTHS), generator=g) for _ in range(2))
    keep = [s for s, of in enumerate(GROUP) if of in groups]
    starts = [0, *itertools.accumulate(LENGTHS)]
    tokens = [t for s in keep for t in range(starts[s], starts[s + 1])]
    lengths = torch.tensor([LENGTHS[s] for s in keep])
    none = torch.zeros(0, dtype=torch.int64)
    fields: dict[str, Any] = {
        "policy_token_logps": policy[tokens].to(dtype),
        "reference_token_logps": reference[tokens].to(dtype),
        "sampler_token_logps": sampler[tokens].to(dtype),
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "chosen": none,
        "rejected": none,
        "probability": none,
        "weight": torch.ones(len(keep), dtype=dtype),
        "total_weight": float(len(LENGTHS)),
        "total_tokens": sum(LENGTHS),
        "group": torch.tensor([groups.index(GROUP[s]) for s in keep]),
        "columns": {
            "rewards": torch.tensor([REWARDS[s] for s in keep], dtype=torch.float64),
            "greedy_rewards": torch.tensor([GREEDY[s] for s in keep], dtype=torch.float64),
        },
    }
    return LossInputs(**(fields | changes))


WHOLE = [0, 1, 2, 3]


def padded(values: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values.split(LENGTHS)), batch_first=True)


def expected_advantages(objective: TokenObjective, inputs: LossInputs) -> Tensor:
    """(9,) by the plain functions, one group at a time."""
    assert inputs.sampler_token_logps is not None
    assert inputs.reference_token_logps is not None
    kl = inputs.sampler_token_logps - inputs.reference_token_logps
    rewards = inputs.columns["rewards"] - objective.kl_coef * padded(kl).sum(1)
    if objective.name == "nash_md":
        return rewards - 0.5
    if objective.advantage_estimator == "rewards":
        return rewards - getattr(objective, "baseline", 0.0)
    found = []
    for g in range(4):
        places = [s for s, of in enumerate(GROUP) if of == g]
        greedy = {"greedy_rewards": [GREEDY[places[0]]]}
        more = greedy if objective.advantage_estimator == "remax" else {}
        row = rewards[places].unsqueeze(0)
        found.append(advantages(objective.advantage_estimator, row, **more).squeeze(0))
    return torch.cat(found)


@each_case
def test_engine_form_is_the_plain_function(name: str, options: dict[str, Any]) -> None:
    inputs, objective = part(WHOLE), get(name, **options)
    assert isinstance(objective, TokenObjective)
    assert inputs.sampler_token_logps is not None
    assert inputs.reference_token_logps is not None
    leaf = inputs.policy_token_logps.clone().requires_grad_()
    plain = {k: v for k, v in options.items() if k not in objective.engine_only}
    a = expected_advantages(objective, inputs)
    loss = token_loss(
        name,
        padded(leaf),
        padded(inputs.sampler_token_logps),
        padded(inputs.reference_token_logps),
        a,
        padded(torch.ones_like(leaf)).detach(),
        **plain,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    output = objective(inputs)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(output.dlogps, leaf.grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(output.metrics["advantages"], a, rtol=1e-12, atol=1e-15)
    assert all(len(values) == 9 for values in output.metrics.values())


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_of_a_batch_add_up(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    objective = get(name, **options)
    assert not objective.batch_global
    whole = objective(part(WHOLE, dtype))
    assert whole.dlogps.dtype == dtype
    for cut in ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2], [3]]):
        parts = [objective(part(groups, dtype)) for groups in cut]
        assert torch.equal(torch.cat([p.dlogps for p in parts]), whole.dlogps), cut
        assert sum(p.loss for p in parts).item() == pytest.approx(whole.loss.item(), rel=1e-13)
        for metric, values in whole.metrics.items():
            assert torch.equal(torch.cat([p.metrics[metric] for p in parts]), values), metric


def test_weights_count_in_the_mean() -> None:
    """A weight of 2 on the last group is that group twice."""
    weight = torch.tensor([1.0] * 7 + [2.0] * 2, dtype=torch.float64)
    objective = get("reinforce")
    twice = objective(part(WHOLE, weight=weight, total_weight=11.0))
    one, last = objective(part([0, 1, 2])), objective(part([3]))
    expected = (one.loss + 2 * last.loss) * 9 / 11
    assert twice.loss.item() == pytest.approx(expected.item(), rel=1e-13)


def test_reinforce_pp_takes_the_whole_batch() -> None:
    """The default of ppo: rewards whitened over all tokens, each of which counts once."""
    objective = get("ppo")
    assert objective.batch_global
    assert not objective.needs_reference
    found = objective(part(WHOLE)).metrics["advantages"]
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    assert (found * lengths).sum().item() == pytest.approx(0, abs=1e-12)
    assert (found**2 * lengths).sum().item() == pytest.approx(24.0)


def test_who_needs_what() -> None:
    assert get("grpo").needs_reference
    assert not get("grpo", beta=0.0).needs_reference
    assert get("ppo", kl_coef=0.1).needs_reference
    assert not get("rloo", kl_coef=0.0).needs_reference
    assert {n for n in ("ppo", "grpo", "rloo", "topr", "reinforce", "nash_md")
            if get(n).needs_sampler} == {"ppo", "grpo", "rloo", "topr"}  # fmt: skip


def test_no_total_tokens_are_those_of_the_part() -> None:
    objective = get("grpo", reduction="token")
    assert torch.equal(
        objective(part(WHOLE, total_tokens=None)).dlogps, objective(part(WHOLE)).dlogps
    )


def test_metrics_by_hand() -> None:
    """Group 3, responses of one and two tokens."""
    inputs = part(
        [3],
        policy_token_logps=torch.tensor([-1.0, -2.0, -3.0]),
        sampler_token_logps=torch.tensor([-1.0, -2.5, -3.5]),
        reference_token_logps=torch.tensor([-2.0, -2.0, -2.0]),
        cu_seqlens=torch.tensor([0, 1, 3]),
    )
    metrics = get("topr")(inputs).metrics
    assert metrics["rewards"].tolist() == metrics["advantages"].tolist() == [0.0, 1.0]
    assert metrics["logps"].tolist() == [-1.0, -5.0]
    assert metrics["policy/log_ratio"].tolist() == [0.0, 0.5]
    assert metrics["objective/kl"].tolist() == [1.0, -1.0]


def test_slopes_have_the_dtype_of_the_log_probs() -> None:
    narrow, wide = (get("topr")(part(WHOLE, dtype)) for dtype in (torch.float32, torch.float64))
    assert narrow.dlogps.dtype == torch.float32
    torch.testing.assert_close(narrow.dlogps.double(), wide.dlogps, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_tokens_have_advantages_of_their_own(dtype: torch.dtype, reduction: str) -> None:
    """As the plain function has them; rewards are then not looked at."""
    inputs = part(WHOLE, dtype)
    generator = torch.Generator().manual_seed(7)
    of_tokens = torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)
    given = dataclasses.replace(inputs, token_columns={"advantages": of_tokens}, columns={})
    output = get("ppo", reduction=reduction)(given)
    leaf = padded(inputs.policy_token_logps).double().requires_grad_()
    assert inputs.sampler_token_logps is not None
    mask = padded(torch.ones(sum(LENGTHS))).bool()
    loss = token_loss(
        "ppo",
        leaf,
        padded(inputs.sampler_token_logps).double(),
        None,
        padded(of_tokens),
        mask,
        reduction=reduction,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert leaf.grad is not None
    torch.testing.assert_close(output.dlogps.double(), leaf.grad[mask], rtol=1e-6, atol=1e-9)
    means = [part.mean().item() if len(part) else 0.0 for part in of_tokens.split(LENGTHS)]
    assert output.metrics["advantages"].tolist() == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_entropy_bonus_is_reduced_as_the_losses_are(dtype: torch.dtype, reduction: str) -> None:
    """A loss of 1 a token would have the same factor: -A with A = -1 at ratio 1."""
    options: dict[str, Any] = {"reduction": reduction, "clip": 0.5}
    if reduction == "constant":
        options["max_length"] = 8
    ones = {"advantages": -torch.ones(sum(LENGTHS))}
    inputs = part(WHOLE, dtype)
    at_one = dataclasses.replace(
        inputs, sampler_token_logps=inputs.policy_token_logps, token_columns=ones
    )
    entropy = torch.linspace(0.1, 3, sum(LENGTHS), dtype=torch.float64)
    factor = get("ppo", **options)(at_one).dlogps.double()
    with_bonus = dataclasses.replace(at_one, side={"entropy": entropy.to(dtype)})
    plain, output = (
        get("ppo", **options)(at_one),
        get("ppo", entropy_coef=0.3, **options)(with_bonus),
    )
    torch.testing.assert_close(output.dside["entropy"].double(), -0.3 * factor)
    torch.testing.assert_close(output.dlogps, plain.dlogps)
    bonus = 0.3 * (factor * entropy).sum().item()
    assert plain.loss.item() - output.loss.item() == pytest.approx(bonus, rel=1e-5)
    assert output.metrics["policy/entropy"].shape == (len(LENGTHS),)


def test_what_advantages_of_tokens_do_not_go_with() -> None:
    given = part(WHOLE, token_columns={"advantages": torch.ones(sum(LENGTHS))})
    with pytest.raises(RequestError) as caught:
        get("rloo")(given)
    assert str(caught.value) == (
        "[rloo] does not take Feedback.token_columns['advantages']: it takes one a response"
    )
    with pytest.raises(RequestError, match="kl_coef is not 0"):
        get("ppo", kl_coef=0.1)(given)
    missing = part(WHOLE, token_columns={"advantages": torch.full((sum(LENGTHS),), torch.nan)})
    with pytest.raises(RequestError, match=r"\[ppo\] advantages must be given for every token"):
        get("ppo")(missing)
    with pytest.raises(RequestError, match=r"\[grpo\] needs entropy of every token's distribution"):
        get("grpo", entropy_coef=0.1)(part(WHOLE))
    with pytest.raises(ConfigError, match="entropy_coef is no option here"):
        token_loss("grpo", *[torch.zeros(1, 1)] * 3, [0.0], [[1]], entropy_coef=0.1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grpo", {"group": None}, "[grpo] needs the group of every response"),
        (
            "grpo",
            {"sampler_token_logps": None},
            "[grpo] needs log-probs under the model that sampled",
        ),
        (
            "grpo",
            {"reference_token_logps": None},
            "[grpo] needs reference log-probs but the engine has no reference",
        ),
        (
            "topr",
            {"columns": {}},
            "[topr] needs rewards of every response: give it in Feedback.columns",
        ),
        (
            "topr",
            {"columns": {"rewards": torch.full((2,), torch.nan)}},
            "[topr] rewards must be given for every response and be finite",
        ),
    ],
)
def test_what_the_engine_must_give(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((RequestError, ValueError)) as caught:
        get(name)(part([3], **changes))
    assert str(caught.value) == message
