"""Listwise objectives against hand arithmetic, their limits, finite differences, and the engine's
form of them, in which the parts of a batch add up to the batch.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine.errors import ConfigError, RequestError
from pyengine.objectives import ListwiseObjective, LossInputs, get, listwise_loss, pairwise_loss
from pyengine.objectives.available import OBJECTIVES
from pyengine.objectives.lists.listwise import equal_groups

NAMES = sorted(cls.name for cls in OBJECTIVES if issubclass(cls, ListwiseObjective))
each_name = pytest.mark.parametrize("name", NAMES)


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(groups: int, size: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(groups, size, generator=g, dtype=torch.float64)


def given(name: str, groups: int, size: int, seed: int = 9) -> dict[str, Tensor]:
    """What the named objective takes besides the scores."""
    values = draw(groups, size, seed).abs()
    needs = get(name).needs  # type: ignore[attr-defined]
    return {needs: values.argsort(1) if needs == "order" else values}


def test_the_names_of_the_catalogue() -> None:
    assert NAMES == [
        "infonca", "lipo_lambda", "nca_reward", "pairwise_list", "plackett_luce", "softmax_list",
    ]  # fmt: skip


def test_plackett_luce_hand_arithmetic() -> None:
    """scores log 1, log 2, log 5; the order 2, 0, 1 has probability 5/8 * 1/3 * 1 = 5/24.

    The slope on the best is softmax - 1 = 5/8 - 1; on the second 1/8 + 1/3 - 1; on the last
    2/8 + 2/3 - 0 (its own rank's term gives 1 - 1).
    """
    s = f64([0.0, math.log(2), math.log(5)]).requires_grad_()
    loss = listwise_loss("plackett_luce", s, order=[[2, 0, 1]])
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(24 / 5), rel=1e-14)
    expected = [1 / 8 + 1 / 3 - 1, 2 / 8 + 2 / 3, 5 / 8 - 1]
    assert s.grad.tolist()[0] == pytest.approx(expected, rel=1e-13)


def test_plackett_luce_is_a_distribution_over_orders() -> None:
    s = draw(1, 4)
    total = sum(
        math.exp(-listwise_loss("plackett_luce", s, order=[list(p)]).item())
        for p in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0, rel=1e-13)


def test_lipo_lambda_hand_arithmetic() -> None:
    """scores (1, 0, 2), relevance (1, 0, 0.5); ranks 2, 3, 1.
    discounts   1/log 3 = 0.91023923, 1/log 4 = 0.72134752, 1/log 2 = 1.44269504
    gains       2, 1, 1.41421356
    (0, 1)      1 * 0.18889171 * log(1 + e^-1) = 0.18889171 * 0.31326169 = 0.05917254
    (0, 2)      0.58578644 * 0.53245581 * log(1 + e) = 0.31190539 * 1.31326169 = 0.40961340
    (2, 1)      0.41421356 * 0.72134752 * log(1 + e^-2) = 0.29879193 * 0.12692801 = 0.03792507
    sum         0.50671101
    """
    s, psi = f64([1.0, 0.0, 2.0]), f64([1.0, 0.0, 0.5])
    loss = listwise_loss("lipo_lambda", s, relevance=psi)
    assert loss.item() == pytest.approx(0.50671101, abs=2e-8)
    mean = listwise_loss("lipo_lambda", s, relevance=psi, reduction="mean")
    assert mean.item() == pytest.approx(0.50671101 / 3, abs=1e-8)


def test_lipo_lambda_of_two_is_dpo_weighted() -> None:
    """K = 2, psi 1 and 0: Delta = 1 * |1/log 2 - 1/log 3|, whichever is ahead."""
    s = draw(5, 2)
    delta = 1 / math.log(2) - 1 / math.log(3)
    loss = listwise_loss("lipo_lambda", s, relevance=f64([1.0, 0.0]).expand(5, 2))
    torch.testing.assert_close(loss, delta * dpo_of(s), rtol=1e-13, atol=1e-14)


def dpo_of(scores: Tensor) -> Tensor:
    none = torch.zeros(len(scores), dtype=scores.dtype)
    return pairwise_loss("dpo", scores[:, 0], scores[:, 1], none, none, beta=1.0)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("plackett_luce", {}),
        ("pairwise_list", {"relevance": [3.0, 1.0]}),
        ("softmax_list", {"relevance": [1.0, 0.0]}),
        ("infonca", {"rewards": [1.0, 0.0], "temperature": 1e-3}),
    ],
)
def test_two_responses_are_dpo(name: str, inputs: dict[str, Any]) -> None:
    s = draw(5, 2)
    inputs = {k: f64(v).expand(5, 2) if isinstance(v, list) else v for k, v in inputs.items()}
    torch.testing.assert_close(listwise_loss(name, s, **inputs), dpo_of(s), rtol=1e-13, atol=1e-14)


def test_softmax_list_hand_arithmetic() -> None:
    """softmax(0, log 3) = (1/4, 3/4), psi (1, 3): 1/4 log 4 + 3/4 log 4/3 = 0.56233514."""
    loss = listwise_loss("softmax_list", f64([0.0, math.log(3)]), relevance=[[1, 3]])
    assert loss.item() == pytest.approx(0.56233514, abs=1e-8)
    nothing = listwise_loss("softmax_list", draw(2, 3), relevance=torch.zeros(2, 3))
    assert nothing.tolist() == [0.0, 0.0]


def test_pairwise_list_hand_arithmetic() -> None:
    """scores (1, 0, 0), psi (2, 1, 1): two pairs of gap 1; 2 log(1 + e^-1) = 0.62652338."""
    loss = listwise_loss("pairwise_list", f64([1.0, 0.0, 0.0]), relevance=[[2, 1, 1]])
    assert loss.item() == pytest.approx(0.62652338, abs=1e-8)


def test_infonca_hand_arithmetic_and_its_least_value() -> None:
    """labels softmax(0, log 3) = (1/4, 3/4), scores equal: log 2. Scores that are the rewards give
    the labels' entropy, 0.56233514, and no slope.
    """
    r = f64([0.0, math.log(3)])
    assert listwise_loss("infonca", torch.zeros_like(r), rewards=r).item() == pytest.approx(
        math.log(2)
    )
    s = (r + 7).requires_grad_()
    loss = listwise_loss("infonca", s, rewards=r)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.56233514, abs=1e-8)
    assert s.grad.abs().max().item() < 1e-15


def test_nca_reward_hand_arithmetic() -> None:
    """labels (1/4, 3/4), scores 0 and 1, K 2; l = log(1 + e^-1) = 0.31326169.
    1/4 log 2 + 3/4 l + 1/2 (log 2 + l + 1) = 0.17328680 + 0.23494627 + 1.00320444 = 1.41143750
    """
    loss = listwise_loss("nca_reward", f64([0.0, 1.0]), rewards=[[0.0, math.log(3)]])
    assert loss.item() == pytest.approx(1.41143750, abs=2e-8)


@each_name
@pytest.mark.parametrize("size", [1, 4])
def test_slopes_are_those_of_finite_differences(name: str, size: int) -> None:
    scores, inputs = draw(3, size), given(name, 3, size)
    leaf = scores.clone().requires_grad_()
    listwise_loss(name, leaf, **inputs).sum().backward()
    step = 1e-6
    for i in range(scores.numel()):
        ends = []
        for sign in (1, -1):
            moved = scores.clone()
            moved.view(-1)[i] += sign * step
            ends.append(listwise_loss(name, moved, **inputs).sum().item())
        expected = (ends[0] - ends[1]) / (2 * step)
        assert leaf.grad.view(-1)[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@each_name
def test_float32_gives_what_float64_gives(name: str) -> None:
    scores, inputs = draw(4, 5).float(), given(name, 4, 5)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    narrow, exact = listwise_loss(name, scores, **inputs), listwise_loss(
        name, scores.double(), **inputs
    )  # fmt: skip
    assert (narrow.dtype, exact.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(narrow.double(), exact, rtol=3e-6, atol=3e-6)
    arrays = {k: v.numpy() for k, v in inputs.items()}
    assert torch.equal(listwise_loss(name, scores.numpy(), **arrays), narrow)


@each_name
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_1e4_stay_finite(name: str, size: float, dtype: torch.dtype) -> None:
    scores = draw(3, 4).to(dtype)
    scores[:, 1] += size
    leaf = scores.requires_grad_()
    losses = listwise_loss(name, leaf, **given(name, 3, 4))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert leaf.grad.isfinite().all()


@each_name
def test_equal_rewards_and_no_groups_are_defined(name: str) -> None:
    inputs = given(name, 2, 3)
    if "order" not in inputs:
        inputs = {k: torch.ones_like(v) for k, v in inputs.items()}
    assert listwise_loss(name, draw(2, 3), **inputs).isfinite().all()
    none = {k: v[:0] for k, v in inputs.items()}
    assert listwise_loss(name, torch.zeros(0, 3), **none).shape == (0,)


# The engine's form: packed tokens of groups of 3, 1, 3, 2 responses, one of no tokens.
LENGTHS = [3, 1, 4, 5, 2, 0, 6, 1, 2]
GROUP = [0, 0, 0, 1, 2, 2, 2, 3, 3]
REWARDS = [0.3, 1.0, 0.3, 0.5, 0.2, 0.9, 0.1, 0.0, 1.0]
WEIGHT = [1.0, 0.5, 2.0, 1.0]


def part(groups: list[int], dtype: torch.dtype = torch.float64, **changes: Any) -> LossInputs:
    """These groups of the batch, as a micro-batch of it."""
    g = torch.Generator().manual_seed(3)
    policy = -torch.rand(sum(LENGTHS), generator=g, dtype=torch.float64)
    reference = policy + 0.5 * torch.randn(sum(LENGTHS), generator=g, dtype=torch.float64)
    keep = [s for s, of in enumerate(GROUP) if of in groups]
    starts = [0, *itertools.accumulate(LENGTHS)]
    tokens = [t for s in keep for t in range(starts[s], starts[s + 1])]
    lengths = torch.tensor([LENGTHS[s] for s in keep])
    none = torch.zeros(0, dtype=torch.int64)
    fields: dict[str, Any] = {
        "policy_token_logps": policy[tokens].to(dtype),
        "reference_token_logps": reference[tokens].to(dtype),
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "chosen": none,
        "rejected": none,
        "probability": none,
        "weight": f64(*(WEIGHT[of] for of in groups)),
        "total_weight": sum(WEIGHT),
        "group": torch.tensor([groups.index(GROUP[s]) for s in keep]),
        "columns": {"rewards": f64(*(REWARDS[s] for s in keep))},
    }
    return LossInputs(**(fields | changes))


def test_equal_groups_stack() -> None:
    """Responses of groups 0, 1, 0, 2, 2, 1: three groups of two."""
    found = equal_groups(torch.tensor([0, 1, 0, 2, 2, 1, 4]))
    assert [(w.tolist(), p.tolist()) for w, p in found] == [
        ([4], [[6]]),
        ([0, 1, 2], [[0, 2], [1, 5], [3, 4]]),
    ]


@each_name
def test_engine_form_is_the_plain_function(name: str) -> None:
    """Loss and slopes of the batch from the plain function and autograd, one group at a time."""
    inputs = part([0, 1, 2, 3])
    leaf = inputs.policy_token_logps.clone().requires_grad_()
    objective = get(name, beta=0.3)
    owner = torch.repeat_interleave(torch.arange(9), torch.tensor(LENGTHS))
    rho = torch.zeros(9, dtype=torch.float64).index_add(
        0, owner, leaf - inputs.reference_token_logps
    )
    loss = torch.zeros((), dtype=torch.float64)
    for g, weight in enumerate(WEIGHT):
        places = [s for s, of in enumerate(GROUP) if of == g]
        rewards = inputs.columns["rewards"][places].unsqueeze(0)
        needs = objective.needs  # type: ignore[attr-defined]
        x = rewards.argsort(stable=True, dim=1, descending=True) if needs == "order" else rewards
        scores = 0.3 * rho[places].unsqueeze(0)
        loss = loss + weight * listwise_loss(name, scores, **{needs: x}).sum() / sum(WEIGHT)
    loss.backward()  # type: ignore[no-untyped-call]
    output = objective(inputs)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-13)
    torch.testing.assert_close(output.dlogps, leaf.grad, rtol=1e-12, atol=1e-15)
    assert all(len(values) == 4 for values in output.metrics.values())


@each_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_of_a_batch_add_up(name: str, dtype: torch.dtype) -> None:
    objective = get(name)
    whole = objective(part([0, 1, 2, 3], dtype))
    assert whole.dlogps.dtype == dtype
    for cut in ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2], [3]]):
        parts = [objective(part(groups, dtype)) for groups in cut]
        assert torch.equal(torch.cat([p.dlogps for p in parts]), whole.dlogps), cut
        assert sum(p.loss for p in parts).item() == pytest.approx(whole.loss.item(), rel=1e-14)
        for metric, values in whole.metrics.items():
            torch.testing.assert_close(torch.cat([p.metrics[metric] for p in parts]), values)


def test_metrics_by_hand() -> None:
    """A group of rewards (0.5, 1): the second is the best. Log-ratios -1 and 2, beta 0.1."""
    inputs = part(
        [3],
        policy_token_logps=f64(-2.0, -1.0, -1.0),
        reference_token_logps=f64(-1.0, -2.0, -2.0),
    )
    metrics = get("plackett_luce")(inputs).metrics
    assert metrics["rewards/chosen"].item() == pytest.approx(0.2)
    assert metrics["rewards/rejected"].item() == pytest.approx(-0.1)
    assert metrics["rewards/margins"].item() == pytest.approx(0.3)
    assert metrics["rewards/accuracies"].item() == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": None}, "[infonca] needs the group of every response"),
        (
            {"reference_token_logps": None},
            "[infonca] needs reference log-probs but the engine has no reference",
        ),
        (
            {"columns": {}},
            "[infonca] needs rewards of every response: give it in Feedback.columns",
        ),
        (
            {"columns": {"rewards": f64(0, math.nan)}},
            "[infonca] rewards must be given for every response and be finite",
        ),
    ],
)
def test_what_the_engine_must_give(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((RequestError, ValueError)) as caught:
        get("infonca")(part([3], **changes))
    assert str(caught.value) == message


TWO = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("name", "scores", "options", "message"),
    [
        ("dpo", TWO, {}, "[listwise_loss] dpo is not a listwise objective"),
        ("infonca", TWO, {"beta": 1}, "[listwise_loss] scores must hold beta already"),
        ("infonca", TWO, {}, "[listwise_loss] rewards must be given"),
        ("infonca", TWO, {"x": 1}, "[objectives] infonca has no option 'x'; it has beta, temp"),
        ("infonca", TWO, {"rewards": torch.zeros(2)}, "[listwise_loss] rewards must have shape"),
        ("infonca", TWO[0], {}, "[listwise_loss] scores must be floating point of shape (G, K)"),
        ("infonca", TWO[:, :0], {}, "[listwise_loss] scores must have at least one response"),
        ("plackett_luce", TWO, {"order": [[1, 1]]}, "[listwise_loss] order must hold each of 0"),
        ("softmax_list", TWO, {"relevance": [[-1, 1]]}, "[listwise_loss] relevance must be >= 0"),
        ("lipo_lambda", TWO, {"relevance": [[61, 1]]}, "[listwise_loss] relevance must be in ["),
        ("infonca", TWO, {"temperature": 0}, "[infonca] temperature must be > 0 and finite but"),
        ("nca_reward", TWO, {"temperature": 0}, "[nca_reward] temperature must be > 0 and"),
        ("lipo_lambda", TWO, {"reduction": "max"}, "[lipo_lambda] reduction must be one of sum"),
        ("pairwise_list", TWO, {"reduction": "x"}, "[pairwise_list] reduction must be one of"),
    ],
)
def test_what_is_refused(name: str, scores: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as caught:
        listwise_loss(name, scores, **options)
    assert str(caught.value).startswith(message)


@each_name
def test_beta_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get(name, beta=0)
    assert str(caught.value) == f"[{name}] beta must be > 0 and finite but is 0"
