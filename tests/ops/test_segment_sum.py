"""segment_sum against its float64 reference: sums, gradient, bits, checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.segment_sum import segment_sum as reference
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import segment_sum, segment_sum_backward

LENGTHS: dict[str, list[int]] = {
    "none": [],
    "empty": [0, 0, 0],
    "one": [1],
    "each": [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 0, 111, 4099, 0],
    "many": [(7 * i) % 90 for i in range(2000)],
    "long": [70001, 3, 0, 40000],
}


def make(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """values (N,), weights (N,), cu_seqlens (S + 1,)."""
    rng = torch.Generator().manual_seed(seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    N = int(cu_seqlens[-1])
    values = -3 * torch.rand(N, generator=rng)
    return values, torch.randn(N, generator=rng), cu_seqlens


def close(ours: Tensor, exact: Tensor, size: Tensor) -> None:
    """In float64, whose rounding grows with the sum of the terms' sizes."""
    assert ours.dtype == exact.dtype == torch.float64
    assert bool(((ours - exact).abs() <= 1e-14 * size).all())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sums(lengths: list[int], weighted: bool, isa: str) -> None:
    values, weights, cu_seqlens = make(lengths)
    w = weights if weighted else None
    double = values.double(), None if w is None else w.double()
    size = reference(double[0].abs(), cu_seqlens, None if w is None else w.double().abs())
    close(segment_sum(values, cu_seqlens, w), reference(double[0], cu_seqlens, double[1]), size)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_gradient(lengths: list[int], weighted: bool, isa: str) -> None:
    values, weights, cu_seqlens = make(lengths)
    w = weights if weighted else None
    dsums = torch.randn(len(lengths), dtype=torch.float64, generator=torch.Generator())
    x = values.double().requires_grad_()
    sums = reference(x, cu_seqlens, None if w is None else w.double())
    (exact,) = torch.autograd.grad(sums, x, dsums, materialize_grads=True, allow_unused=True)
    assert torch.equal(segment_sum_backward(dsums, cu_seqlens, w), exact.float())


def test_by_hand() -> None:
    """1 * 2 + 2 * 0 = 2; nothing: 0; 4 * 0.5 = 2. Back: 10 * 2, 10 * 0; 30 * 0.5."""
    values, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 0.0, 0.5])
    cu_seqlens = torch.tensor([0, 2, 2, 3])
    assert segment_sum(values, cu_seqlens, weights).tolist() == [2.0, 0.0, 2.0]
    assert segment_sum(values, cu_seqlens).tolist() == [3.0, 0.0, 4.0]
    dsums = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    assert segment_sum_backward(dsums, cu_seqlens, weights).tolist() == [20.0, 0.0, 15.0]
    assert segment_sum_backward(dsums, cu_seqlens).tolist() == [10.0, 10.0, 30.0]


# Bits


def both(lengths: list[int]) -> tuple[Tensor, ...]:
    values, weights, cu_seqlens = make(lengths)
    sums = segment_sum(values, cu_seqlens, weights)
    return sums, segment_sum(values, cu_seqlens), segment_sum_backward(sums, cu_seqlens, weights)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_threads_and_instruction_sets_change_nothing(
    lengths: list[int], restore_threads: None, restore_isa: None
) -> None:
    pe.set_num_threads(1)
    _C.set_isa("baseline")
    one = both(lengths)
    for name in _C.available_isas():
        _C.set_isa(name)
        for threads in (1, 2, 3):
            pe.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(one, both(lengths), strict=True))


def test_a_sum_does_not_depend_on_its_neighbours(isa: str) -> None:
    lengths = LENGTHS["each"]
    values, weights, cu_seqlens = make(lengths)
    together = segment_sum(values, cu_seqlens, weights)
    for s, n in enumerate(lengths):
        part = slice(int(cu_seqlens[s]), int(cu_seqlens[s + 1]))
        alone = segment_sum(values[part].clone(), torch.tensor([0, n]), weights[part].clone())
        assert torch.equal(alone[0], together[s])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_segment(bad: float, isa: str) -> None:
    values, _, cu_seqlens = make([5, 20, 5])
    values[12] = bad
    sums = segment_sum(values, cu_seqlens)
    assert sums.isfinite().tolist() == [True, False, True]


def test_a_parameter_and_both_ways_of_reading(reading: str) -> None:
    values, weights, cu_seqlens = make([3, 4])
    kept = torch.nn.Parameter(values)
    assert torch.equal(segment_sum(kept, cu_seqlens, weights), both([3, 4])[0])


# Checks


def arguments(**changes: Any) -> dict[str, Any]:
    values, weights, cu_seqlens = make([3, 4])
    return {"values": values, "cu_seqlens": cu_seqlens, "weights": weights} | changes


BAD = [
    ({"values": [1.0]}, TypeError, r"values must be a torch.Tensor but is list"),
    ({"values": torch.zeros(7).double()}, TypeError, r"values must be float32 but is float64"),
    ({"values": torch.zeros(7, 1)}, ValueError, r"values must have shape \(N,\) but got \(7, 1\)"),
    ({"values": torch.zeros(14)[::2]}, ValueError, r"values must be contiguous but its stride"),
    ({"weights": torch.zeros(6)}, ValueError, r"weights must have shape \(N,\) = \(7,\) but got"),
    ({"weights": torch.zeros(7).double()}, TypeError, r"weights must be float32 but is float64"),
    ({"cu_seqlens": None}, TypeError, r"cu_seqlens must be a torch.Tensor but is NoneType"),
    ({"cu_seqlens": torch.zeros(3)}, TypeError, r"cu_seqlens must be int64 but is float32"),
    ({"cu_seqlens": torch.zeros(1, 3).long()}, ValueError, r"cu_seqlens must have shape \(S \+ 1"),
    *(
        ({"cu_seqlens": torch.tensor(x)}, ValueError, r"cu_seqlens must rise from 0 to N = 7")
        for x in (
            [0, 8],
            [1, 7],
            [0, 5, 4, 7],
            [0, -1, 7],
            [0, -(2**63), 7],
            [0, 2**63 - 1, 7],
            [0],
        )
    ),
    (
        {"cu_seqlens": torch.zeros(0).long()},
        ValueError,
        r"cu_seqlens must rise from 0 to N = 7",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[b[2] for b in BAD])
def test_checks(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"^\[segment_sum\] " + message):
        segment_sum(**arguments(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dsums": torch.zeros(2)}, TypeError, r"dsums must be float64 but is float32"),
        ({"dsums": torch.zeros(3).double()}, ValueError, r"dsums must have shape \(S,\) = \(2,\)"),
        ({"dsums": None}, TypeError, r"dsums must be a torch.Tensor but is NoneType"),
        ({"weights": 1.0}, TypeError, r"weights must be a torch.Tensor but is float"),
        ({"weights": torch.zeros(6)}, ValueError, r"cu_seqlens must rise from 0 to N = 6"),
        ({"cu_seqlens": torch.tensor([0, 8, 7])}, ValueError, r"cu_seqlens must rise from 0"),
        (
            {"weights": None, "cu_seqlens": torch.tensor([0, -1])},
            ValueError,
            r"cu_seqlens must rise from 0 to N = 0",
        ),
    ],
    ids=str,
)
def test_backward_checks(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = arguments(dsums=torch.zeros(2).double()) | changes
    with pytest.raises(error, match=r"^\[segment_sum\] " + message):
        segment_sum_backward(given["dsums"], given["cu_seqlens"], given["weights"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sums", {"sums": torch.zeros(2)}, r"sums must be float64 but is float32"),
        ("shape", {"sums": torch.zeros(3).double()}, r"sums must have shape \(S,\) = \(2,\)"),
    ],
)
def test_output_checks(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        _C.segment_sum_forward(**arguments(**changes))


@pytest.mark.parametrize(
    ("dvalues", "message"),
    [
        (torch.zeros(7).double(), r"dvalues must be float32 but is float64"),
        (torch.zeros(7, 1), r"dvalues must have shape \(N,\) but got \(7, 1\)"),
    ],
)
def test_gradient_output_checks(dvalues: Tensor, message: str) -> None:
    _, weights, cu_seqlens = make([3, 4])
    with pytest.raises((TypeError, ValueError), match=message):
        _C.segment_sum_backward(torch.zeros(2).double(), weights, cu_seqlens, dvalues)


# On a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_a_gpu_gives_the_same_bits(lengths: list[int], weighted: bool) -> None:
    values, weights, cu_seqlens = make(lengths)
    w = weights if weighted else None
    on_gpu = None if w is None else w.cuda()
    sums = segment_sum(values, cu_seqlens, w)
    ours = segment_sum(values.cuda(), cu_seqlens.cuda(), on_gpu)
    assert torch.equal(ours.cpu(), sums)
    back = segment_sum_backward(ours, cu_seqlens.cuda(), on_gpu)
    assert torch.equal(back.cpu(), segment_sum_backward(sums, cu_seqlens, w))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["weights", "cu_seqlens"])
def test_all_on_one_device(name: str) -> None:
    given = arguments()
    given[name] = given[name].cuda()
    message = rf"\[segment_sum\] {name} must be on cpu like values but is on cuda:0"
    with pytest.raises(ValueError, match=message):
        segment_sum(**given)
