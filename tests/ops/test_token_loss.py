"""token_loss against its float64 reference: losses, slopes, metrics, bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference.token_loss import Parameters
from reference.token_loss import token_loss as reference
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import TokenLoss, TokenSurrogate, segment_sum, token_loss

LENGTHS: dict[str, list[int]] = {
    "none": [],
    "empty": [0, 0],
    "one": [1],
    "each": [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 0, 111, 4099, 0],
    "many": [(7 * i) % 30 for i in range(60)],
}
SURROGATES = {
    "ppo": TokenSurrogate("clipped"),
    "dual": TokenSurrogate("clipped", low=0.1, high=0.3, dual=1.3),
    "grpo": TokenSurrogate("clipped", penalty="k3", beta=0.04),
    "gspo": TokenSurrogate("clipped", "mean", penalty="k3", beta=0.1),
    "gspo dual": TokenSurrogate("clipped", "mean", 0.01, 0.01, 1.02),
    "rloo": TokenSurrogate("clipped", "sum"),
    "rloo k3": TokenSurrogate("clipped", "sum", penalty="k3", beta=0.5),
    "reinforce": TokenSurrogate("log_prob"),
    "topr": TokenSurrogate("tapered", "sum"),
    "topr token": TokenSurrogate("tapered", "token"),
    "topr mean": TokenSurrogate("tapered", "mean", penalty="k3", beta=0.1),
    "nash": TokenSurrogate("log_prob", penalty="sum_log_ratio", beta=0.1),
    "nash token": TokenSurrogate("log_prob", penalty="log_ratio", beta=0.1),
}
each_surrogate = pytest.mark.parametrize("name", SURROGATES)


def of_response(s: TokenSurrogate) -> bool:
    return s.family == "clipped" and s.level == "sum"


def make(lengths: list[int], per_token: bool = False, wide: bool = True) -> dict[str, Any]:
    """Log-probs about -1.5, samplers and references some tenths away."""
    rng = torch.Generator().manual_seed(sum(lengths))
    S, N = len(lengths), sum(lengths)
    policy = -3 * torch.rand(N, generator=rng)
    old, near = (policy + 0.3 * torch.randn(N, generator=rng) for _ in range(2))
    a = torch.randn(N if per_token else S, generator=rng)
    factor = torch.rand(S, generator=rng, dtype=torch.float64)
    return {
        "policy": policy,
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "advantages": a.double() if wide else a,
        "old": old,
        "reference": near,
        "factor": factor,
        "per_token": per_token,
    }


def exact(s: TokenSurrogate, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Losses, and d (factor * losses) / d policy, in float64."""
    wide = {k: v.double() if k != "cu_seqlens" and isinstance(v, Tensor) else v
            for k, v in given.items()}  # fmt: skip
    factor, policy = wide.pop("factor"), wide.pop("policy").requires_grad_()
    losses = reference(Parameters(*s), policy, **wide)
    (slopes,) = torch.autograd.grad(
        losses, policy, factor, materialize_grads=True, allow_unused=True
    )
    return losses.detach(), slopes


def close(ours: Tensor, want: Tensor, size: Tensor | float = 1.0) -> None:
    """Both in float64, whose rounding grows with what is added up."""
    assert ours.dtype == torch.float64
    assert bool(((ours - want).abs() <= 1e-13 * (1.0 + want.abs()) * size).all())


def check(s: TokenSurrogate, given: dict[str, Any]) -> None:
    got = token_loss(s, **given)
    losses, slopes = exact(s, given)
    sizes = 1.0 + given["cu_seqlens"].diff().double()
    close(got.losses, losses, sizes)
    torch.testing.assert_close(got.dlogps, slopes.float(), rtol=3e-7, atol=1e-12)
    close(got.logps, segment_sum(given["policy"], given["cu_seqlens"]))
    assert got.log_ratio is not None
    assert got.kl is not None
    wide = {k: given[k].double() for k in ("policy", "old", "reference")}
    for i, (a, b) in enumerate(zip(given["cu_seqlens"], given["cu_seqlens"][1:], strict=False)):
        d, rho = wide["policy"] - wide["old"], wide["policy"] - wide["reference"]
        close(got.log_ratio[i], d[a:b].sum() / max(int(b - a), 1), sizes[i])
        close(got.kl[i], rho[a:b].sum(), sizes[i])


@each_surrogate
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values(name: str, lengths: list[int], isa: str) -> None:
    check(SURROGATES[name], make(lengths))


@each_surrogate
@pytest.mark.parametrize("wide", [False, True])
def test_advantages_of_tokens(name: str, wide: bool, isa: str) -> None:
    if not of_response(SURROGATES[name]):
        check(SURROGATES[name], make([5, 0, 8, 33, 1], per_token=True, wide=wide))


def test_float32_advantages_are_what_they_are_in_float64() -> None:
    given = make([5, 3], wide=False)
    wide = given | {"advantages": given["advantages"].double()}
    ours, same = (token_loss(SURROGATES["ppo"], **x) for x in (given, wide))
    assert torch.equal(ours.losses, same.losses)


def test_ppo_by_hand() -> None:
    """Ratios (1.1, 2 | 1/2), A = 1 and -1, clip 0.2: -1.1 - 1.2, and 0.8; slopes -1.1, 0, 0."""
    policy = torch.tensor([1.1, 2.0, 0.5]).log()
    got = token_loss(
        TokenSurrogate("clipped"),
        policy,
        torch.tensor([0, 2, 3]),
        torch.tensor([1.0, -1.0]),
        old=torch.zeros(3),
    )
    assert got.losses.tolist() == pytest.approx([-2.3, 0.8], rel=1e-7)
    assert got.dlogps.tolist() == pytest.approx([-1.1, 0.0, 0.0], rel=1e-6)
    assert got.kl is None


def test_k3_by_hand() -> None:
    """Policy == sampler, reference higher by log 2, A = 1, beta 0.5: -1 + 0.5 (2 - log 2 - 1);
    slope -1 + 0.5 (1 - 2), times the factor 2.
    """
    policy = torch.tensor([-1.0])
    got = token_loss(
        TokenSurrogate("clipped", penalty="k3", beta=0.5),
        policy,
        torch.tensor([0, 1]),
        torch.ones(1),
        old=policy,
        reference=policy + math.log(2),
        factor=torch.tensor([2.0], dtype=torch.float64),
    )
    assert got.losses.item() == pytest.approx(-1 + 0.5 * (1 - math.log(2)), rel=1e-6)
    assert got.dlogps.item() == pytest.approx(-3.0, rel=1e-6)


def slope_at(x: float, a: float, dual: float | None = None) -> float:
    s = TokenSurrogate("clipped", low=0.5, high=1.0, dual=dual)
    given: dict[str, Any] = {"old": torch.zeros(1)}
    bounds, advantage = torch.tensor([0, 1]), torch.tensor([a])
    return token_loss(s, torch.tensor([x]), bounds, advantage, **given).dlogps.item()


def test_ends_of_the_clip_and_ties() -> None:
    """r = 1 exactly, where low = 0 and high = 0 end: the slope inside, as torch's clamp has it."""
    for a in (1.0, -1.0, 0.0):
        policy = torch.zeros(1, requires_grad=True)
        r = policy.exp()
        torch.minimum(r * a, r.clamp(1.0, 1.0) * a).sum().neg().backward()  # type: ignore[no-untyped-call]
        s = TokenSurrogate("clipped", low=0.0, high=0.0)
        got = token_loss(
            s, policy.detach(), torch.tensor([0, 1]), torch.tensor([a]), old=torch.zeros(1)
        )
        assert policy.grad is not None
        assert got.dlogps.item() == policy.grad.item() == -a


def test_half_a_slope_where_the_ratio_is_the_dual_clip() -> None:
    """As torch.maximum gives where both are equal."""
    given = (torch.tensor([0.7]), torch.tensor([0, 1]), torch.tensor([-1.0]))
    free = token_loss(TokenSurrogate("clipped"), *given, old=torch.zeros(1))
    bound = TokenSurrogate("clipped", dual=free.losses.item())  # -A r is r
    got = token_loss(bound, *given, old=torch.zeros(1))
    assert torch.equal(got.losses, free.losses)
    assert got.dlogps.item() == pytest.approx(free.dlogps.item() / 2, rel=1e-7)


def test_log_ratios_are_cut_at_20() -> None:
    assert slope_at(20.0, -1.0) == pytest.approx(math.exp(20), rel=1e-6)
    assert slope_at(20.5, -1.0) == slope_at(-20.5, 1.0) == 0.0
    assert slope_at(-20.0, 1.0) == pytest.approx(-math.exp(-20), rel=1e-6)
    assert slope_at(3.0, -1.0, dual=3.0) == 0.0


@each_surrogate
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_log_ratios_of_1e4_stay_finite(name: str, size: float, isa: str) -> None:
    given = make([3, 9])
    got = token_loss(SURROGATES[name], **(given | {"policy": given["policy"] + size}))
    assert all(x is not None and bool(x.isfinite().all()) for x in got)


@each_surrogate
def test_nan_is_seen_and_stays_in_its_response(name: str, isa: str) -> None:
    given = make([5, 20, 5])
    policy = given["policy"].clone()
    policy[12] = torch.nan
    got = token_loss(SURROGATES[name], **(given | {"policy": policy}))
    assert got.losses.isnan().tolist() == [False, True, False]
    if SURROGATES[name].family == "clipped":
        assert bool(got.dlogps[12].isnan())
    assert not bool(got.dlogps[[*range(5), *range(25, 30)]].isnan().any())
    a = torch.tensor([0.0, torch.nan, 1.0])
    assert token_loss(SURROGATES[name], **(given | {"advantages": a})).losses.isnan().tolist() == [
        False, True, False,
    ]  # fmt: skip


# Bits


def same(a: TokenLoss, b: TokenLoss) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


@each_surrogate
def test_threads_and_instruction_sets_change_nothing(
    name: str, restore_threads: None, restore_isa: None
) -> None:
    given = make([*LENGTHS["each"], *LENGTHS["many"], 9001])
    pe.set_num_threads(1)
    _C.set_isa("baseline")
    one = token_loss(SURROGATES[name], **given)
    for isa in _C.available_isas():
        _C.set_isa(isa)
        for threads in (1, 2, 3):
            pe.set_num_threads(threads)
            assert same(one, token_loss(SURROGATES[name], **given))


@each_surrogate
def test_a_response_does_not_depend_on_the_others(name: str, isa: str) -> None:
    lengths = LENGTHS["each"]
    given = make(lengths)
    together = token_loss(SURROGATES[name], **given)
    for s, n in enumerate(lengths):
        part = slice(int(given["cu_seqlens"][s]), int(given["cu_seqlens"][s + 1]))
        alone = token_loss(
            SURROGATES[name],
            given["policy"][part].clone(),
            torch.tensor([0, n]),
            given["advantages"][s : s + 1],
            old=given["old"][part],
            reference=given["reference"][part],
            factor=given["factor"][s : s + 1],
        )
        assert torch.equal(alone.losses[0], together.losses[s])
        assert torch.equal(alone.dlogps, together.dlogps[part])


def test_sums_are_those_of_segment_sum(isa: str) -> None:
    given = make(LENGTHS["each"])
    got = token_loss(SURROGATES["reinforce"], **given)
    assert torch.equal(got.logps, segment_sum(given["policy"], given["cu_seqlens"]))


def test_both_ways_of_reading(reading: str) -> None:
    given = make([3, 4])
    kept = given | {"policy": torch.nn.Parameter(given["policy"])}
    assert same(token_loss(SURROGATES["grpo"], **kept), token_loss(SURROGATES["grpo"], **given))


# Checks

SEVEN, TWO = torch.zeros(7), torch.zeros(2).double()
GIVEN: dict[str, Any] = {
    "surrogate": TokenSurrogate("clipped"), "policy": SEVEN, "cu_seqlens": torch.tensor([0, 3, 7]),
    "advantages": TWO, "old": SEVEN, "reference": SEVEN, "factor": TWO,
}  # fmt: skip


def of(**changes: Any) -> dict[str, Any]:
    return {"surrogate": TokenSurrogate("clipped")._replace(**changes)}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"policy": [1.0]}, TypeError, r"policy must be a torch.Tensor but is list"),
    ({"policy": SEVEN.double()}, TypeError, r"policy must be float32 but is float64"),
    ({"policy": SEVEN[None]}, ValueError, r"policy must have shape \(N,\) but got \(1, 7\)"),
    ({"policy": torch.zeros(14)[::2]}, ValueError, r"policy must be contiguous but its stride"),
    ({"old": SEVEN[:6]}, ValueError, r"old must have shape \(N,\) = \(7,\) but got \(6,\)"),
    ({"old": SEVEN.double()}, TypeError, r"old must be float32 but is float64"),
    ({"old": None}, ValueError, r"old must be given with family 'clipped'"),
    ({"reference": SEVEN[:6]}, ValueError, r"reference must have shape \(N,\) = \(7,\) but got"),
    ({"reference": None, **of(penalty="k3")}, ValueError, r"reference must be given with penalty"),
    ({"cu_seqlens": torch.tensor([0, 8])}, ValueError, r"cu_seqlens must rise from 0 to N = 7"),
    ({"cu_seqlens": torch.tensor([0, 5, 4, 7])}, ValueError, r"cu_seqlens must rise from 0 to N"),
    ({"cu_seqlens": None}, TypeError, r"cu_seqlens must be a torch.Tensor but is NoneType"),
    ({"cu_seqlens": torch.zeros(1, 3).long()}, ValueError, r"cu_seqlens must have shape \(S \+ 1"),
    ({"advantages": SEVEN}, ValueError, r"advantages must have shape \(S,\) = \(2,\) but got"),
    ({"advantages": TWO.long()}, TypeError, r"advantages must be float32 or float64 but is int64"),
    ({"per_token": True}, ValueError, r"advantages must have shape \(N,\) = \(7,\) but got \(2,\)"),
    (
        {"per_token": True, **of(level="sum")},
        ValueError,
        r"per_token must be False where level 'sum' is clipped",
    ),
    ({"factor": TWO.float()}, TypeError, r"factor must be float64 but is float32"),
    ({"factor": SEVEN.double()}, ValueError, r"factor must have shape \(S,\) = \(2,\) but got"),
    (of(family="x"), ValueError, r"family must be one of clipped, log_prob, tapered but is 'x'"),
    (of(level="x"), ValueError, r"level must be one of token, mean, sum but is 'x'"),
    (of(penalty="x"), ValueError, r"penalty must be one of none, k3, log_ratio, sum_log_ratio but"),
    (of(low=1.5), ValueError, r"low must be in \[0, 1\] but is 1.5"),
    (of(high=math.inf), ValueError, r"high must be >= 0 and finite but is inf"),
    (of(dual=1.0), ValueError, r"dual must be > 1 and finite, or None but is 1.0"),
    (of(beta=math.nan), ValueError, r"beta must be finite but is nan"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[b[2] for b in BAD])
def test_checks(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"^\[token_loss\] " + message):
        token_loss(**(GIVEN | changes))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, TWO.float(), r"losses must be float64 but is float32"),
        (1, SEVEN[:6], r"dlogps must have shape \(N,\) = \(7,\) but got \(6,\)"),
        (2, SEVEN.double(), r"logps must have shape \(S,\) = \(2,\) but got \(7,\)"),
        (3, None, r"log_ratio must be given if old is, and only then"),
        (4, None, r"kl must be given if reference is, and only then"),
    ],
)
def test_output_checks(place: int, value: Any, message: str) -> None:
    outputs: list[Any] = [TWO.clone(), SEVEN.clone(), TWO.clone(), TWO.clone(), TWO.clone()]
    outputs[place] = value
    with pytest.raises((TypeError, ValueError), match=message):
        _C.token_loss(
            SEVEN,
            SEVEN,
            SEVEN,
            GIVEN["cu_seqlens"],
            TWO,
            False,
            None,
            *GIVEN["surrogate"],
            *outputs,
        )


# On a GPU


def on_gpu(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in given.items()}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_surrogate
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_a_gpu_gives_the_same_bits(name: str, per_token: bool, lengths: list[int]) -> None:
    if per_token and of_response(SURROGATES[name]):
        pytest.skip("one loss a response has one advantage a response")
    given = make(lengths, per_token=per_token)
    ours = token_loss(SURROGATES[name], **on_gpu(given))
    there = TokenLoss(*(None if x is None else x.cpu() for x in ours))
    assert same(there, token_loss(SURROGATES[name], **given))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_without_what_may_be_left_out() -> None:
    given = make(LENGTHS["each"], wide=False) | {"old": None, "reference": None, "factor": None}
    ours = token_loss(SURROGATES["reinforce"], **on_gpu(given))
    there = TokenLoss(*(None if x is None else x.cpu() for x in ours))
    assert same(there, token_loss(SURROGATES["reinforce"], **given))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["old", "cu_seqlens", "advantages"])
def test_all_on_one_device(name: str) -> None:
    message = rf"\[token_loss\] {name} must be on cpu like policy but is on cuda:0"
    with pytest.raises(ValueError, match=message):
        token_loss(**(GIVEN | {name: GIVEN[name].cuda()}))
