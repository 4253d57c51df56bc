"""Token-level objectives as plain functions: hand arithmetic, limits, finite differences, checks.

The engine's form of them is in test_token_level_engine.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine.errors import ConfigError
from pyengine.objectives import TokenObjective, get, ppo_value_loss, token_loss
from pyengine.objectives.available import OBJECTIVES

NAMES = sorted(cls.name for cls in OBJECTIVES if issubclass(cls, TokenObjective))
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ppo", {}),
    ("ppo", {"dual_clip": 1.2, "clip_high": 0.3, "reduction": "sequence"}),
    ("grpo", {}),
    ("grpo", {"beta": 0.0, "reduction": "token", "clip_high": 0.28}),
    ("grpo", {"beta": 0.1, "reduction": "constant", "max_length": 9}),
    ("grpo", {"level": "sequence"}),
    ("topr", {}),
    ("rloo", {}),
    ("reinforce", {}),
    ("reinforce", {"reduction": "token"}),
    ("nash_md", {"beta": 0.0}),
]
# A stop-gradient in the loss: its slope is not the loss's own difference.
STOPPED: list[tuple[str, dict[str, Any]]] = [("nash_md", {}), ("nash_md", {"level": "token"})]
each_case = pytest.mark.parametrize(("name", "options"), CASES + STOPPED)


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
ADVANTAGES = f64(1.5, -0.7, 0.4, 2.0)


def draw(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Log-probs under policy, sampler and reference (4, 5), of float32's precision."""
    g = torch.Generator().manual_seed(seed)
    policy = -torch.rand(4, 5, generator=g) * 3
    near = [policy + 0.3 * torch.randn(4, 5, generator=g) for _ in range(2)]
    return [x.to(dtype) for x in (policy, *near)]


def loss_of(name: str, logps: list[Tensor], options: dict[str, Any]) -> Tensor:
    return token_loss(name, *logps, ADVANTAGES.to(logps[0].dtype), MASK, **options)


def test_the_names_of_the_catalogue() -> None:
    assert NAMES == ["ampo", "capo", "grpo", "nash_md", "ppo", "reinforce", "rloo", "topr"]


LN2 = math.log(2.0)
LN1_1 = math.log(1.1)


def test_ppo_by_hand() -> None:
    """Ratios (1.1, 2 | 1/2), advantages 1 and -1, clip 0.2, the last token of response 1 padding.
    response 0  -min(1.1, 1.1) = -1.1; -min(2, 1.2) = -1.2, cut off: no slope
    response 1  -min(-0.5, -0.8) = 0.8, cut off
    token       (-1.1 - 1.2 + 0.8) / 3 = -0.5
    sequence    (-1.15 + 0.8) / 2 = -0.175
    constant    over max_length 4: (-2.3 / 4 + 0.8 / 4) / 2 = -0.1875
    sum         (-2.3 + 0.8) / 2 = -0.75
    """
    policy = f64([LN1_1, LN2], [-LN2, 5.0]).requires_grad_()
    old, a, mask = torch.zeros(2, 2), f64(1, -1), [[1, 1], [1, 0]]

    def loss(**options: Any) -> Tensor:
        return token_loss("ppo", policy, old, None, a, mask, **options)

    token = loss()
    token.backward()  # type: ignore[no-untyped-call]
    assert token.item() == pytest.approx(-0.5, rel=1e-14)
    assert policy.grad.flatten().tolist() == pytest.approx([-1.1 / 3, 0, 0, 0], rel=1e-14)
    assert loss(reduction="sequence").item() == pytest.approx(-0.175, rel=1e-14)
    constant = loss(reduction="constant", max_length=4)
    assert constant.item() == pytest.approx(-0.1875, rel=1e-14)
    assert loss(reduction="sum").item() == pytest.approx(-0.75, rel=1e-14)
    assert loss(clip_high=0.5).item() == pytest.approx((-1.1 - 1.5 + 0.8) / 3, rel=1e-14)


def test_dual_clip_by_hand() -> None:
    """Ratio e^3 = 20.1, A = -1: 20.1 without a bound, c = 3 with it; A = 1 is not touched."""
    policy, old = f64([3.0]), f64([0.0])
    assert token_loss("ppo", policy, old, None, f64(-1), [[1]]).item() == pytest.approx(math.exp(3))
    for a, expected in ((-1.0, 3.0), (1.0, -1.2)):
        loss = token_loss("ppo", policy, old, None, f64(a), [[1]], dual_clip=3.0)
        assert loss.item() == pytest.approx(expected, rel=1e-14)


def test_ppo_takes_an_advantage_a_token() -> None:
    """Policy == sampler: the mean of -A over the tokens: -(1 + 2 - 6) / 3 = 1."""
    same = f64([-1.0, -2.0], [-3.0, 0.0])
    loss = token_loss("ppo", same, same, None, f64([1, 2], [-6, 99]), [[1, 1], [1, 0]])
    assert loss.item() == pytest.approx(1.0)


def test_ppo_value_loss_by_hand() -> None:
    """V = (2, 0.1), old 1 and 0, returns 1 and 1, clip 0.2: clipped V = (1.2, 0.1).
    max(1, 0.04) / 2 = 0.5; max(0.81, 0.81) / 2 = 0.405: mean 0.4525. Padding does not count.
    """
    v, old, returns = f64([2, 0.1, 7]), f64([1, 0, 0]), f64([1, 1, 0])
    assert ppo_value_loss(v, old, returns, [[1, 1, 0]]).item() == pytest.approx(0.4525)
    free = ppo_value_loss(v, None, returns, [[1, 1, 0]], clip=None)
    assert free.item() == pytest.approx((0.5 + 0.405) / 2)
    assert ppo_value_loss(v, old, returns, [[0, 0, 0]]).item() == 0.0


def test_grpo_by_hand() -> None:
    """Policy == sampler, reference higher by log 2 at one of two tokens, A = 1, beta 0.5.
    k3    2 - log 2 - 1 = 0.30685282 and 0
    loss  -1 + 0.5 * 0.30685282 / 2 = -0.92328680
    slope on the first token  (-1 + 0.5 * (1 - 2)) / 2 = -0.75; on the second -0.5
    """
    policy = f64([-1.0, -2.0]).requires_grad_()
    ref = f64([-1.0 + LN2, -2.0])
    loss = token_loss("grpo", policy, policy.detach(), ref, f64(1), [[1, 1]], beta=0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-0.92328680, abs=1e-8)
    assert policy.grad.tolist()[0] == pytest.approx([-0.75, -0.5], rel=1e-13)


def test_gspo_by_hand() -> None:
    """Log-ratios log 1.1 and 0 and a padded one: r = sqrt(1.1), A = 1: -r; its slope on each of the
    two log-probs is -r / 2.
    """
    policy = f64([LN1_1, 0.0, 9.0]).requires_grad_()
    options: dict[str, Any] = {"beta": 0, "level": "sequence"}
    loss = token_loss("grpo", policy, torch.zeros(1, 3), None, f64(1), [[1, 1, 0]], **options)
    loss.backward()  # type: ignore[no-untyped-call]
    r = math.sqrt(1.1)
    assert loss.item() == pytest.approx(-r, rel=1e-14)
    assert policy.grad.tolist()[0] == pytest.approx([-r / 2, -r / 2, 0], rel=1e-13)


def test_rloo_by_hand() -> None:
    """Summed log-ratios log 1.1 (r = 1.1, A = 2) and log 2 (A = 3, cut to 1.2):
    -(2.2 + 3.6) / 2 = -2.9; slopes -2.2 / 2 on each of the first's tokens.
    """
    policy = f64([LN1_1 - 1, 1.0], [LN2, 0.0]).requires_grad_()
    loss = token_loss("rloo", policy, torch.zeros(2, 2), None, f64(2, 3), [[1, 1], [1, 0]])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-2.9, rel=1e-14)
    assert policy.grad.flatten().tolist() == pytest.approx([-1.1, -1.1, 0, 0], rel=1e-13)


def test_reinforce_by_hand() -> None:
    """-(0.5 * -3 + 2 * -1) / 2 = 1.75; the mean over the three tokens 3.5 / 3."""
    policy, mask = f64([-1.0, -2.0], [-1.0, 0.0]), [[1, 1], [1, 0]]
    loss = token_loss("reinforce", policy, None, None, f64(0.5, 2), mask)
    assert loss.item() == pytest.approx(1.75)
    mean = token_loss("reinforce", policy, None, None, f64(0.5, 2), mask, reduction="token")
    assert mean.item() == pytest.approx(3.5 / 3)


def test_topr_by_hand() -> None:
    """Response 0: A = 1, lp -2: 2, slope -1 whatever the ratio. Response 1: A = -1, lp -3, sampler
    -3 + log 2, ratio 1/2: -1.5, slope 1/2. Response 2: A = -1, lp -1, sampler -4, ratio cut at 1:
    -1, slope 1. Mean of three.
    """
    policy = f64([-2.0], [-3.0], [-1.0]).requires_grad_()
    old = f64([5.0], [-3.0 + LN2], [-4.0])
    loss = token_loss("topr", policy, old, None, f64(1, -1, -1), [[1]] * 3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx((2 - 1.5 - 1) / 3, rel=1e-14)
    assert policy.grad.flatten().tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 3], rel=1e-13)


def test_nash_md_by_hand() -> None:
    """P = 0.9: A = 0.4; lp (-1, -2), reference (-1.5, -1): rho (0.5, -1), sum -0.5; beta 0.1.
    sequence  slope on each log-prob -(0.4 + 0.05) = -0.45
    token     -(0.4 - 0.05) = -0.35 and -(0.4 + 0.1) = -0.5
    """
    ref = f64([-1.5, -1.0])
    for level, expected in (("sequence", [-0.45, -0.45]), ("token", [-0.35, -0.5])):
        policy = f64([-1.0, -2.0]).requires_grad_()
        loss = token_loss("nash_md", policy, None, ref, f64(0.4), [[1, 1]], level=level)
        loss.backward()  # type: ignore[no-untyped-call]
        slopes = f64(expected)
        assert loss.item() == pytest.approx((slopes * policy.detach()).sum().item(), rel=1e-13)
        torch.testing.assert_close(policy.grad, slopes, rtol=1e-13, atol=0)


def test_nash_md_levels_agree_on_one_token() -> None:
    policy, _, ref = draw()
    mask = torch.zeros(4, 5)
    mask[:, 2] = 1
    losses = [
        token_loss("nash_md", policy, None, ref, ADVANTAGES, mask, level=level)
        for level in ("sequence", "token")
    ]
    torch.testing.assert_close(*losses, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["ppo", "rloo", "reinforce", "topr"])
def test_at_the_sampler_the_slope_is_the_policy_gradient(name: str) -> None:
    """Policy == sampler: d loss / d log-prob = -A / B on every response token, when summed."""
    policy = draw()[0].requires_grad_()
    options = {"reduction": "sum"} if name in ("ppo", "reinforce") else {}
    a = ADVANTAGES.abs()
    token_loss(name, policy, policy.detach(), None, a, MASK, **options).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(policy.grad, -a.unsqueeze(1) * MASK / 4, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_slopes_are_those_of_finite_differences(name: str, options: dict[str, Any]) -> None:
    """TOPR's ratio takes no slope: its advantages are positive here."""
    logps = draw()
    a = ADVANTAGES.abs() if name == "topr" else ADVANTAGES

    def loss(policy: Tensor) -> Tensor:
        return token_loss(name, policy, logps[1], logps[2], a, MASK, **options)

    leaf = logps[0].clone().requires_grad_()
    loss(leaf).backward()  # type: ignore[no-untyped-call]
    step = 1e-6
    for i in range(leaf.numel()):
        moved = [logps[0].clone() for _ in range(2)]
        moved[0].view(-1)[i] += step
        moved[1].view(-1)[i] -= step
        expected = (loss(moved[0]) - loss(moved[1])).item() / (2 * step)
        assert leaf.grad.view(-1)[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def value_and_slope(name: str, logps: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    leaf = logps[0].clone().requires_grad_()
    loss = loss_of(name, [leaf, *logps[1:]], options)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return [loss.detach(), leaf.grad]


@each_case
def test_float32_gives_what_float64_gives(name: str, options: dict[str, Any]) -> None:
    narrow = value_and_slope(name, draw(torch.float32), options)
    wide = value_and_slope(name, draw(torch.float64), options)
    for x, exact in zip(narrow, wide, strict=True):
        assert (x.dtype, exact.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(x.double(), exact, rtol=2e-6, atol=2e-6)


@each_case
def test_what_is_off_the_mask_does_not_matter(name: str, options: dict[str, Any]) -> None:
    logps = draw()
    expected = value_and_slope(name, logps, options)
    spoilt = [x.masked_fill(MASK == 0, math.nan) for x in logps]
    found = value_and_slope(name, spoilt, options)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert bool((found[1][MASK == 0] == 0).all())


@each_case
@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratios_of_1e4_stay_finite(
    name: str, options: dict[str, Any], size: float, dtype: torch.dtype
) -> None:
    logps = draw(dtype)
    loss, slope = value_and_slope(name, [logps[0] + size, *logps[1:]], options)
    assert loss.isfinite()
    assert slope.isfinite().all()


@each_case
def test_no_responses_and_no_tokens_are_defined(name: str, options: dict[str, Any]) -> None:
    for shape in ((0, 3), (2, 0), (2, 3)):
        x = torch.zeros(shape)
        loss = token_loss(name, x, x, x, torch.ones(shape[0]), x, **options)
        assert loss.item() == 0.0


T = torch.zeros(2, 3)
A = torch.zeros(2)


@pytest.mark.parametrize(
    ("name", "given", "options", "message"),
    [
        ("dpo", {}, {}, "[token_loss] dpo is not a token-level objective"),
        ("ppo", {}, {"beta": 1}, "[objectives] ppo has no option 'beta'; it has advantage_estim"),
        ("ppo", {}, {"kl_coef": 1}, "[token_loss] advantages are given, kl_coef is no option here"),
        ("grpo", {}, {"advantage_estimator": "grpo"}, "[token_loss] advantages are given, advan"),
        ("topr", {}, {"baseline": 1}, "[token_loss] advantages are given, baseline is no option"),
        ("ppo", {"token_logps": A}, {}, "[token_loss] token_logps must be floating point of shape"),
        ("ppo", {"old_token_logps": None}, {}, "[token_loss] old_token_logps must be given"),
        ("grpo", {"ref_token_logps": None}, {}, "[token_loss] ref_token_logps must be given"),
        ("nash_md", {"ref_token_logps": None}, {}, "[token_loss] ref_token_logps must be given"),
        ("ppo", {"old_token_logps": A}, {}, "[token_loss] old_token_logps must have shape (2, 3)"),
        ("ppo", {"mask": A}, {}, "[token_loss] mask must have shape (2, 3) but got (2,)"),
        ("ppo", {"advantages": T[:, :2]}, {}, "[token_loss] advantages must have shape (2, 3) but"),
        ("rloo", {"advantages": T}, {}, "[token_loss] advantages must have shape (2,) but got"),
        ("topr", {"advantages": T}, {}, "[token_loss] advantages must have shape (2,) but got"),
        ("grpo", {}, {"reduction": "constant"}, "[grpo] max_length must be given with reduction"),
    ],
)
def test_what_is_refused(
    name: str, given: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    arguments = {
        "token_logps": T, "old_token_logps": T, "ref_token_logps": T, "advantages": A, "mask": T,
    } | given  # fmt: skip
    with pytest.raises((ConfigError, ValueError)) as caught:
        token_loss(name, **arguments, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "option", "value", "rule"),
    [
        ("ppo", "clip", 1.0, "in (0, 1)"),
        ("ppo", "clip_high", 0, "> 0 and finite, or None"),
        ("ppo", "dual_clip", 1.0, "> 1 and finite, or None"),
        ("ppo", "reduction", "mean", "one of sequence, token, constant, sum"),
        ("ppo", "max_length", 0, "an integer >= 1, or None"),
        ("ppo", "max_length", 2.0, "an integer >= 1, or None"),
        ("grpo", "level", "word", "one of token, sequence"),
        ("grpo", "beta", -0.1, ">= 0 and finite"),
    ],
)
def test_hyperparameters_say_their_rule(name: str, option: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get(name, **{option: value})
    assert str(caught.value) == f"[{name}] {option} must be {rule} but is {value!r}"


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_is_checked(name: str) -> None:
    for field in dataclasses.fields(OBJECTIVES.class_of(name)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError) as caught:
            get(name, **{field.name: math.nan})
        assert str(caught.value).startswith(f"[{name}] {field.name} must be ")
