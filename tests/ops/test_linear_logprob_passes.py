"""linear_logprob below autograd: packed weights, directions, continued chains, statistics."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from linear_logprob_cases import BF16, F32, NAMES, equal, forward, make, run
from reference.linear_logprob import linear_logprob_stats, linear_logprob_with_gradients
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine.ops.linear import linear_pack_columns

GROUPS = (0, 1, 12, 13, 13, 50, 83, 111)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_dweight_chain_continues(dtype: torch.dtype, isa: str) -> None:
    """Any split of the groups over calls gives the bits of one call; it starts at what stands."""
    hidden, weight, targets, dlogprob = make(111, 47, 600, (dtype, dtype))
    lse = forward(hidden, weight, targets)[1]
    start = torch.randn(600, 47, generator=torch.Generator().manual_seed(5))

    def add(dweight: Tensor, first: int, last: int) -> None:
        rows = slice(GROUPS[first], GROUPS[last])
        groups = torch.tensor(GROUPS[first : last + 1]) - GROUPS[first]
        operands = (dlogprob[rows], hidden[rows], weight, targets[rows], lse[rows])
        pe.ops.linear_logprob_backward(*operands, dweight=dweight, groups=groups)

    whole, end = start.clone(), len(GROUPS) - 1
    add(whole, 0, end)
    exact = linear_logprob_with_gradients(hidden, weight, targets, dlogprob)[2] + start.double()
    check_budget(whole.to(dtype), exact.to(dtype), exact)
    for cuts in ((0, 1, end), (0, 3, 4, end), (0, 2, 5, end), tuple(range(end + 1))):
        parts = start.clone()
        for first, last in itertools.pairwise(cuts):
            add(parts, first, last)
        assert torch.equal(parts, whole), cuts


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_dweight_chain_crosses_rounds(dtype: torch.dtype) -> None:
    """More tokens than a task holds coefficients of; the chain must not notice."""
    hidden, weight, targets, dlogprob = make(2500, 16, 300, (dtype, dtype))
    lse = forward(hidden, weight, targets)[1]
    whole, parts = torch.zeros(300, 16), torch.zeros(300, 16)
    operands = (dlogprob, hidden, weight, targets, lse)
    pe.ops.linear_logprob_backward(*operands, dweight=whole)
    for rows in (slice(0, 700), slice(700, 2500)):
        operands = (dlogprob[rows], hidden[rows], weight, targets[rows], lse[rows])
        pe.ops.linear_logprob_backward(*operands, dweight=parts)
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("shape", [(50, 47, 601), (1, 1, 1), (33, 64, 4099), (300, 33, 31)])
def test_packed_weights_and_directions_change_no_bit(
    shape: tuple[int, int, int], dtype: torch.dtype, isa: str
) -> None:
    """Plain or with a direction, packed or not: one logprob, one lse, one gradient."""
    hidden, weight, targets, dlogprob = make(*shape, (dtype, dtype))
    kind: Literal["float32", "bfloat16"] = "float32" if dtype == F32 else "bfloat16"
    packed, columns = pe.ops.linear_pack(weight, kind), linear_pack_columns(weight, kind)
    plain = pe.ops.linear_logprob_forward(hidden, weight, targets)
    assert plain.direction is None
    from_packed = pe.ops.linear_logprob_forward(hidden, packed, targets)
    both = pe.ops.linear_logprob_forward(hidden, packed, targets, columns)
    loose = pe.ops.linear_logprob_forward(hidden, weight, targets, direction=True)
    for other in (from_packed, both, loose):
        assert equal(other[:2], plain[:2])
    assert both.direction is not None
    assert loose.direction is not None
    assert torch.equal(both.direction, loose.direction)

    buffers = [torch.zeros(weight.shape) for _ in range(2)]
    operands = (targets, plain.lse, both.direction)
    for head, dweight in zip((weight, packed), buffers, strict=True):
        dhidden = pe.ops.linear_logprob_backward(dlogprob, hidden, head, *operands, dweight)
        assert torch.equal(dhidden, dlogprob[:, None] * both.direction)
    assert torch.equal(*buffers)
    got = run(hidden, weight, targets, dlogprob)
    assert equal(got, (plain.logprob, dhidden.to(dtype), buffers[0].to(dtype)))


def test_bfloat16_hidden_and_float32_packed() -> None:
    hidden, weight, targets, _ = make(33, 47, 600, (BF16, F32))
    packed = pe.ops.linear_pack(weight, "float32")
    assert equal(
        pe.ops.linear_logprob_forward(hidden, packed, targets)[:2],
        forward(hidden.float(), weight, targets),
    )


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_temperature(temperature: float, dtype: torch.dtype, isa: str) -> None:
    hidden, weight, targets, dlogprob = make(33, 47, 600, (dtype, dtype))
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprob = pe.ops.linear_logprob(h, w, targets, temperature)
    got = (logprob.detach(), *torch.autograd.grad(logprob, (h, w), dlogprob))
    operands = (hidden, weight, targets, dlogprob)
    exact = linear_logprob_with_gradients(*operands, temperature=temperature)
    plain = linear_logprob_with_gradients(*operands, dtype=F32, temperature=temperature)
    for ours, p, e in zip(got, plain, exact, strict=True):
        check_budget(ours, p.to(ours.dtype), e)


def stats_of(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    hidden, weight, targets, _ = make(*shape, (dtype, dtype))
    V, k = shape[2], min(7, shape[2])
    ids = torch.randint(0, V, (shape[0], 5), generator=torch.Generator().manual_seed(1))
    asked = {"entropy": True, "sum_squares": True, "top_k": k, "ids": ids, "temperature": 0.8}
    got = pe.ops.linear_logprob_stats(hidden, weight, targets, **asked)
    exact = linear_logprob_stats(hidden.double(), weight.double(), targets, ids, k, 0.8)
    plain = linear_logprob_stats(hidden.float(), weight.float(), targets, ids, k, 0.8)
    for name in ("logprob", "entropy", "sum_squares", "top_logprobs", "id_logprobs"):
        check_budget(getattr(got, name), plain[name].float(), exact[name], name)
    alone = pe.ops.linear_logprob(hidden, weight, targets, 0.8)
    assert torch.equal(got.logprob, alone)
    assert got.entropy is not None
    assert bool((got.entropy >= 0).all())
    by_ids = pe.ops.linear_logprob_stats(hidden, weight, targets, ids=got.top_ids, temperature=0.8)
    assert torch.equal(by_ids.id_logprobs, got.top_logprobs)
    assert got.top_logprobs is not None
    assert bool((got.top_logprobs.diff(dim=1) <= 0).all())
    # No word outside the list beats the last one within it.
    assert got.top_ids is not None
    assert all(len(set(row.tolist())) == k for row in got.top_ids)
    kth = exact["top_logprobs"][:, -1]
    listed = exact["logprobs"].gather(1, got.top_ids)
    assert bool((listed >= kth[:, None] - 1e-4).all())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("shape", [(33, 47, 601), (1, 3, 1), (7, 16, 4099), (150, 8, 31)])
def test_stats(shape: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    stats_of(shape, dtype)


def test_top_k_of_equal_logits_lists_the_lowest_ids_first() -> None:
    weight = torch.zeros(700, 4)
    weight[[3, 300, 650]] = 1.0
    hidden = torch.ones(2, 4)
    hidden[1] = 0.0
    stats = pe.ops.linear_logprob_stats(hidden, weight, torch.tensor([0, 0]), top_k=5)
    assert stats.top_ids is not None
    assert stats.top_ids.tolist() == [[3, 300, 650, 0, 1], [0, 1, 2, 3, 4]]


def test_stats_of_certain_and_banned_words(isa: str) -> None:
    """Entropy 0 and sum p^2 = 1 for a certain word; words of logit -inf add nothing."""
    hidden, weight, targets, _ = make(40, 16, 600)
    hidden, weight = hidden.abs() + 0.1, weight.clone()
    weight[:300] = -float("inf")
    weight[599] = 1e4
    stats = pe.ops.linear_logprob_stats(
        hidden, weight, targets, entropy=True, sum_squares=True, top_k=600
    )
    assert torch.equal(stats.entropy, torch.zeros(40))
    assert torch.equal(stats.sum_squares, torch.ones(40))
    assert stats.top_ids is not None
    assert torch.equal(stats.top_ids[:, 0], torch.full((40,), 599))
    assert torch.equal(stats.top_ids[:, 300:], torch.arange(300).expand(40, 300))


@pytest.mark.parametrize("V", [128256, 151936, 262144])
def test_large_vocabularies(V: int) -> None:
    for dtype in (F32, BF16):
        hidden, weight, targets, dlogprob = make(3, 5, V, (dtype, dtype))
        exact = linear_logprob_with_gradients(hidden, weight, targets, dlogprob)
        plain = linear_logprob_with_gradients(hidden, weight, targets, dlogprob, dtype=F32)
        got = run(hidden, weight, targets, dlogprob)
        assert bool((got[0] <= 0).all())
        for ours, p, e in zip(got, plain, exact, strict=True):
            check_budget(ours, p.to(ours.dtype), e)


def test_sums_of_sequences_add_up_in_token_order() -> None:
    hidden, weight, targets, _ = make(300, 33, 257)
    leaf = hidden.detach().requires_grad_()
    logprobs = pe.ops.linear_logprob(leaf, weight, targets)
    bounds = (0, 1, 1, 40, 251, 300)
    sums = pe.ops.sequence_logprobs(logprobs, torch.tensor(bounds))
    for got, (first, end) in zip(sums, itertools.pairwise(bounds), strict=True):
        want = torch.zeros(())
        for x in logprobs.detach()[first:end]:
            want = want + x
        assert torch.equal(got.detach(), want)
    (gradient,) = torch.autograd.grad(sums, logprobs, torch.arange(5.0), retain_graph=True)
    lengths = torch.tensor(bounds).diff()
    assert torch.equal(gradient, torch.arange(5.0).repeat_interleave(lengths))
    for bad in ([0, 299], [1, 300], [0, 200, 100, 300], []):
        with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to T = 300"):
            pe.ops.sequence_logprobs(logprobs, torch.tensor(bad, dtype=torch.int64))


def test_messages() -> None:
    hidden, weight, targets, dlogprob = make(9, 33, 257)
    forward_of = functools.partial(pe.ops.linear_logprob_forward, hidden)
    packed = pe.ops.linear_pack(weight, "float32")
    small = pe.ops.linear_pack(weight, "bfloat16")
    eight = pe.ops.linear_pack(weight, "int8")
    lse = torch.zeros(9)
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (TypeError, "hidden must be bfloat16", lambda: forward_of(small, targets)),
        (ValueError, "packed as 'float32' or 'bfloat16'", lambda: forward_of(eight, targets)),
        (ValueError, "columns must be", lambda: forward_of(packed, targets, direction=True)),
        (ValueError, "columns must be", lambda: forward_of(packed, targets, packed)),
        (
            ValueError,
            "temperature must be positive",
            lambda: forward_of(weight, targets, temperature=0.0),
        ),
        (
            ValueError,
            "top_ids must have at most V = 257 columns",
            lambda: pe.ops.linear_logprob_stats(hidden, weight, targets, top_k=258),
        ),
        (
            ValueError,
            r"ids must be in \[0, 257\) but ids\[2, 1\] = 257",
            lambda: pe.ops.linear_logprob_stats(hidden, weight, targets, ids=bad_ids()),
        ),
        (
            ValueError,
            "groups must rise from 0 to T = 9",
            lambda: pe.ops.linear_logprob_backward(
                dlogprob, hidden, weight, targets, lse, groups=torch.tensor([0, 8])
            ),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=r"^\[linear_logprob\] .*" + message):
            call()


def bad_ids() -> Tensor:
    ids = torch.zeros(9, 2, dtype=torch.int64)
    ids[2, 1] = 257
    return ids
