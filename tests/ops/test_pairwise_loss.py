"""pairwise_loss against its float64 reference: values, slopes, sums by response, bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference.pairwise_loss import losses as reference_losses
from reference.pairwise_loss import pairwise_loss as reference
from reference.pairwise_loss import rhos
from tolerances import FINITE_DIFFERENCE_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import PairOperand, PairTerm, PairwiseLoss, pairwise_loss

SIZES = (0, 1, 15, 16, 17, 4099)
PARAMETERS = {"exp_logistic": 0.05, "exo": 1e-3}
FAMILIES = ("logistic", "square", "hinge", "sigmoid", "linear", "exp_logistic", "exo")
EXTREMES = (0.0, -0.0, 1e-30, 1e-6, -1e-6, 1.0, -1.0, 17.0, -17.0, 79.0, -79.0, 81.0, -81.0)
EXTREMES += (104.0, -104.0, 1e3, -1e3, 1e4, -1e4)


def term(family: str, *coefficients: Any, **more: Any) -> PairTerm:
    return PairTerm(family, coefficients, **({"parameter": PARAMETERS.get(family, 0.0)} | more))


def normal(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=rng, dtype=dtype)


def operands(C: int, K: int = 2, dtype: torch.dtype = torch.float64) -> list[PairOperand]:
    """Sums of log-probs about -500, a reference within a few of them."""
    result = []
    for k in range(K):
        policy = -500 + 100 * normal(C, 2 * k, dtype)
        result.append(PairOperand(policy, policy + 5 * normal(C, 2 * k + 1, dtype)))
    return result


def indexed(C: int, S: int, K: int = 2, dtype: torch.dtype = torch.float64) -> list[PairOperand]:
    """Responses that are in several comparisons."""
    (both,) = operands(S, 1, dtype)
    rng = torch.Generator().manual_seed(C)
    return [both._replace(index=torch.randint(0, S, (C,), generator=rng)) for _ in range(K)]


def cast(x: Any, dtype: torch.dtype) -> Any:
    """Every tensor of floats inside, in that dtype."""
    if isinstance(x, Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    return [cast(y, dtype) for y in x] if isinstance(x, (tuple, list)) else x


def check(of: list[PairOperand], terms: list[PairTerm], weight: Tensor | None = None) -> None:
    ours = pairwise_loss(of, terms, weight)
    inputs = (of, terms, weight)
    exact = reference(*(cast(x, torch.float64) for x in inputs))
    plain = reference(*(cast(x, torch.float32) for x in inputs))
    for name, got, has, want in zip(ours._fields, ours, plain, exact, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            check_budget(got if name != "dsums" else got.float(), has, want, name)
    assert ours.losses.dtype == ours.slopes.dtype == torch.float32
    if weight is not None and ours.dsums is not None:
        # The float64 sum of the float32 slopes, in order.
        again = torch.zeros_like(ours.dsums)
        index = torch.stack([o.index for o in of if o.index is not None])
        again.index_add_(0, index.T.flatten(), (weight.double() * ours.slopes.double()).T.flatten())
        torch.testing.assert_close(ours.dsums, again, rtol=1e-13, atol=1e-13)


# Values


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("C", SIZES)
def test_sizes(family: str, C: int, isa: str) -> None:
    check(operands(C), [term(family, 0.1, -0.1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_extremes(family: str, isa: str) -> None:
    """Finite, and right at every size: a relative error, since losses span 40 decades."""
    x = torch.tensor(EXTREMES, dtype=torch.float64)
    of, terms = [PairOperand(x)], [term(family, 1.0)]
    ours, exact = pairwise_loss(of, terms), reference(of, terms)
    assert bool(ours.losses.isfinite().all())
    assert bool(ours.slopes.isfinite().all())
    # e^-x of a rounded x: half an ulp of 104 is 4e-6. A float32 below 1e-38 is no longer exact.
    for got, want in ((ours.losses, exact.losses), (ours.slopes, exact.slopes)):
        if family == "exo":  # s(x) (log s(x) - log(1 - eps)) crosses 0
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-38)


@pytest.mark.parametrize("x", [5.0, 16.0, 17.0, 20.0, 40.0, 80.0])
def test_a_loss_that_is_nearly_zero_is_still_right(x: float, isa: str) -> None:
    """log(1 + e^-x) within 8 ulps of its size."""
    of = [PairOperand(torch.tensor([x]))]
    got = pairwise_loss(of, [term("logistic", 1.0)])
    assert got.losses.item() == pytest.approx(math.log1p(math.exp(-x)), rel=1e-6)
    assert got.slopes.item() == pytest.approx(-math.exp(-x) / (1 + math.exp(-x)), rel=1e-6)


def test_dpo_by_hand() -> None:
    """x = .5 * ((-1 + 2) - (-4 + 2)) = 1.5: log(1 + e^-1.5), slopes -+.5 / (1 + e^1.5)."""
    chosen = PairOperand(torch.tensor([-1.0]), torch.tensor([-2.0]))
    rejected = PairOperand(torch.tensor([-4.0]), torch.tensor([-2.0]))
    got = pairwise_loss([chosen, rejected], [term("logistic", 0.5, -0.5)])
    slope = 0.5 / (1 + math.exp(1.5))
    assert got.losses.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-6)
    assert got.slopes.flatten().tolist() == pytest.approx([-slope, slope], rel=1e-6)
    assert got.dsums is None


def test_policy_at_its_reference_costs_log_2() -> None:
    policy = normal(20, 0)
    got = pairwise_loss([PairOperand(policy, policy)] * 2, [term("logistic", 0.1, -0.1)])
    torch.testing.assert_close(got.losses, torch.full((20,), math.log(2.0)))


@pytest.mark.parametrize("parameter", [1e-4, 0.1, 0.5, 0.9])
def test_exo_parameters(parameter: float, isa: str) -> None:
    check(operands(111), [term("exo", 0.1, -0.1, parameter=parameter)])


@pytest.mark.parametrize("parameter", [0.01, 0.05, 1.0, 3.0])
def test_exp_logistic_parameters(parameter: float, isa: str) -> None:
    check(operands(111), [term("exp_logistic", 0.05, -0.05, parameter=parameter)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [1, 2, 3, 8])
def test_operands_and_terms(K: int, dtype: torch.dtype, isa: str) -> None:
    of = operands(33, K, dtype)
    coefficients = [0.1 * (-1) ** k / (k + 1) for k in range(K)]
    terms = [
        term(f, *coefficients, shift=0.1 * i, scale=1 / (i + 1)) for i, f in enumerate(FAMILIES)
    ]
    check(of, terms)


def test_most_operands_and_terms(isa: str) -> None:
    terms = [
        term(f, *(0.02 * (k - i) for k in range(8))) for i, f in enumerate((*FAMILIES, "hinge"))
    ]
    check(operands(100, 8), terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_of_coefficients(dtype: torch.dtype, isa: str) -> None:
    C = 37
    a, b, shift, scale = (normal(C, 10 + i, dtype) for i in range(4))
    check(operands(C), [PairTerm("logistic", [0.1 * a, 0.1 * b], shift, scale)])
    check(operands(C), [PairTerm("square", [0.1 * a, -0.1], shift, 0.5), term("exo", 0.1, -0.1)])


def test_a_number_is_an_array_of_it(isa: str) -> None:
    full = [torch.full((37,), x, dtype=torch.float64) for x in (0.1, -0.2, 0.3, 0.7)]
    got = pairwise_loss(operands(37), [PairTerm("logistic", full[:2], full[2], full[3])])
    want = pairwise_loss(operands(37), [PairTerm("logistic", [0.1, -0.2], 0.3, 0.7)])
    assert same(got, want)


def test_a_coefficient_of_0_leaves_its_operand_out(isa: str) -> None:
    chosen, rejected = operands(20)
    rejected.policy[3] = -torch.inf
    got = pairwise_loss([chosen, rejected], [term("logistic", 0.1, 0.0)])
    want = pairwise_loss([chosen], [term("logistic", 0.1)])
    assert torch.equal(got.losses, want.losses)
    assert torch.equal(got.slopes[:1], want.slopes)
    assert not bool(got.slopes[1].any())


def test_a_missing_reference_is_0_and_dtypes_may_differ(isa: str) -> None:
    policy, reference_ = normal(20, 0), normal(20, 1, torch.float64)
    zero = PairOperand(policy, torch.zeros(20))
    terms = [term("logistic", 0.1)]
    assert same(pairwise_loss([PairOperand(policy)], terms), pairwise_loss([zero], terms))
    mixed = pairwise_loss([PairOperand(policy, reference_)], terms)
    assert same(mixed, pairwise_loss([PairOperand(policy.double(), reference_)], terms))


@pytest.mark.parametrize("family", FAMILIES)
def test_nan_is_seen(family: str, isa: str) -> None:
    policy = torch.zeros(20)
    policy[5] = torch.nan
    losses = pairwise_loss([PairOperand(policy)], [term(family, 1.0)]).losses
    assert losses.isnan().tolist() == [c == 5 for c in range(20)]


# Slopes


@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_by_finite_differences(family: str, isa: str) -> None:
    """Of the float64 reference, away from the corners of hinge and of the clamp."""
    of, step = operands(200), 1e-6
    terms = [term(family, 0.1, -0.07, shift=0.3, scale=1.7)]
    slopes = pairwise_loss(of, terms).slopes
    for k in range(2):
        up, down = ([r.clone() for r in rhos(of)] for _ in range(2))
        up[k] += step
        down[k] -= step
        exact = (reference_losses(up, terms) - reference_losses(down, terms)) / (2 * step)
        size = exact.abs().clamp(min=1.0)
        assert bool(((slopes[k] - exact).abs() <= FINITE_DIFFERENCE_RTOL * size).all())


def test_hinge_is_flat_at_0(isa: str) -> None:
    got = pairwise_loss([PairOperand(torch.zeros(3))], [term("hinge", 1.0)])
    assert not bool(got.slopes.any())
    assert not bool(got.losses.any())


# Sums by response


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("C", SIZES)
def test_responses_in_many_comparisons(C: int, dtype: torch.dtype, isa: str) -> None:
    check(indexed(C, 7, 3, dtype), [term("logistic", 0.1, -0.1, 0.02)], normal(C, 5, dtype))


def test_sums_by_hand() -> None:
    """Response 1 is chosen twice, once against itself: slopes 2 and -2, weights 1 and 10."""
    sums = torch.tensor([1.0, 2.0, 3.0])
    chosen = PairOperand(sums, index=torch.tensor([1, 1]))
    rejected = PairOperand(sums, index=torch.tensor([0, 1]))
    weight = torch.tensor([1.0, 10.0])
    got = pairwise_loss([chosen, rejected], [term("linear", 2.0, -2.0)], weight)
    assert got.losses.tolist() == [2.0, 0.0]
    assert got.slopes.tolist() == [[2.0, 2.0], [-2.0, -2.0]]
    assert got.dsums is not None
    assert got.dsums.tolist() == [-2.0, 2.0, 0.0]


def test_no_responses() -> None:
    empty = PairOperand(torch.zeros(0), index=torch.zeros(0).long())
    got = pairwise_loss([empty], [term("linear", 1.0)], torch.zeros(0))
    assert [None if x is None else tuple(x.shape) for x in got] == [(0,), (1, 0), (0,)]


# Bits


def same(a: PairwiseLoss, b: PairwiseLoss) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


ALL_TERMS = [term(f, 0.1, -0.1, scale=0.3) for f in FAMILIES]


@pytest.mark.parametrize("C", [17, 8191, 8192, 20001])
def test_threads_change_nothing(C: int, isa: str, restore_threads: None) -> None:
    of, weight = indexed(C, 300), normal(C, 5)
    pe.set_num_threads(1)
    one = pairwise_loss(of, ALL_TERMS, weight)
    for threads in (2, 3):
        pe.set_num_threads(threads)
        assert same(one, pairwise_loss(of, ALL_TERMS, weight))


def test_instruction_sets_with_fma_agree(restore_isa: None) -> None:
    of, weight, seen = indexed(333, 50), normal(333, 5), []
    for name in _C.available_isas():
        _C.set_isa(name)
        if name != "baseline":
            seen.append(pairwise_loss(of, ALL_TERMS, weight))
    assert all(same(seen[0], other) for other in seen)


@pytest.mark.parametrize("C", [1, 15, 16, 17, 100])
def test_a_comparison_does_not_depend_on_the_others(C: int, isa: str) -> None:
    of = operands(100)
    together = pairwise_loss(of, ALL_TERMS)
    for first in (0, 100 - C):
        rows = slice(first, first + C)
        part = [
            PairOperand(o.policy[rows], o.reference[rows]) for o in of if o.reference is not None
        ]
        alone = pairwise_loss(part, ALL_TERMS)
        assert torch.equal(alone.losses, together.losses[rows])
        assert torch.equal(alone.slopes, together.slopes[:, rows])


def test_both_ways_of_reading(reading: str) -> None:
    of, weight = indexed(33, 5), normal(33, 5)
    kept = [o._replace(policy=torch.nn.Parameter(o.policy)) for o in of]
    assert same(pairwise_loss(kept, ALL_TERMS, weight), pairwise_loss(of, ALL_TERMS, weight))


# On a GPU


def on_gpu(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.cuda()
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(on_gpu(y) for y in x))
    return [on_gpu(y) for y in x] if isinstance(x, (tuple, list)) else x


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [1, 2, 8])
@pytest.mark.parametrize("C", SIZES)
def test_a_gpu_gives_the_bits_of_a_cpu_with_fma(C: int, K: int, dtype: torch.dtype) -> None:
    if _C.isa() == "baseline":
        pytest.skip("this CPU has no FMA")
    shift, weight = normal(C, 6, dtype), normal(C, 5, dtype)
    terms = [term(f, *(0.1 * (k - i) for k in range(K)), shift=shift, scale=0.3)
             for i, f in enumerate(FAMILIES)]  # fmt: skip
    for of, w in ((operands(C, K, dtype), None), (indexed(C, 300, K, dtype), weight)):
        ours = pairwise_loss(on_gpu(of), on_gpu(terms), on_gpu(w))
        there = PairwiseLoss(*(None if x is None else x.cpu() for x in ours))
        assert same(there, pairwise_loss(of, terms, w))
