"""linear_kl against its float64 reference, and its promises: zero, range, chains, bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from reference.linear_kl import linear_kl as reference
from reference.linear_kl import linear_kl_in_order, linear_kl_with_gradients
from tolerances import FINITE_DIFFERENCE_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops.linear_kl import linear_kl_backward, linear_kl_forward

F32, BF16 = torch.float32, torch.bfloat16
NAMES = {F32: "f32", BF16: "bf16"}
Operands = tuple[Tensor, Tensor, Tensor, Tensor]
GROUPS = (0, 1, 12, 13, 13, 50, 83, 111)


def make(T: int, D: int, V: int, dtype: torch.dtype = F32, D2: int | None = None) -> Operands:
    """Two models of different D, logits spread by about 2."""
    rng = torch.Generator().manual_seed(1000 * T + 10 * D + V)
    D2 = D2 or D + 6

    def randn(rows: int, cols: int, scale: float) -> Tensor:
        return (torch.randn(rows, cols, generator=rng) * scale).to(dtype)

    return randn(T, D, 1.0), randn(V, D, 2 * D**-0.5), randn(T, D2, 1.0), randn(V, D2, 2 * D2**-0.5)


def gradient(T: int) -> Tensor:
    return torch.randn(T, generator=torch.Generator().manual_seed(T))


def run(
    operands: Operands, dkl: Tensor, temperature: float = 1.0, reverse: bool = False
) -> tuple[Tensor, ...]:
    """(kl, dhidden, dweight) through autograd."""
    hidden, weight = (x.detach().requires_grad_() for x in operands[:2])
    kl = pe.ops.linear_kl(hidden, weight, *operands[2:], temperature, reverse)
    return kl.detach(), *torch.autograd.grad(kl, (hidden, weight), dkl)


def check(operands: Operands, temperature: float = 1.0, in_order: bool = False) -> None:
    """`in_order`: beside float32 sums in the promised order, where sums are long."""
    dkl = gradient(operands[0].shape[0])
    got = run(operands, dkl, temperature)
    exact = linear_kl_with_gradients(*operands, dkl, temperature)
    plain = linear_kl_with_gradients(*operands, dkl, temperature, F32)
    if in_order:
        plain = linear_kl_in_order(*operands, dkl)
    assert bool((got[0] >= 0).all())
    for name, ours, p, e in zip(("kl", "dhidden", "dweight"), got, plain, exact, strict=True):
        check_budget(ours, p.to(ours.dtype), e, name)


@pytest.mark.parametrize("T", [0, 1, 31, 111])
def test_tokens(T: int, isa: str) -> None:
    check(make(T, 33, 257))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("V", [1, 31, 300, 4099])
def test_vocabulary(V: int, dtype: torch.dtype, isa: str) -> None:
    check(make(7, 33, V, dtype))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_large_vocabulary(dtype: torch.dtype) -> None:
    check(make(5, 31, 49152, dtype), in_order=True)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("D", [1, 31, 64])
def test_hidden_sizes(D: int, dtype: torch.dtype, isa: str) -> None:
    check(make(50, D, 600, dtype, 5))


@pytest.mark.parametrize("dtypes", list(itertools.product((F32, BF16), repeat=4))[1:-1], ids=str)
def test_mixed_dtypes(dtypes: tuple[torch.dtype, ...]) -> None:
    hidden, weight, hidden2, weight2 = (
        x.to(d) for x, d in zip(make(50, 33, 300), dtypes, strict=True)
    )
    check((hidden, weight, hidden2, weight2))


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_temperature(temperature: float, isa: str) -> None:
    check(make(33, 47, 600), temperature)
    check(make(33, 47, 600, BF16), temperature)


def test_value_by_hand() -> None:
    """p = (1/2, 1/2), p2 = (1/4, 3/4): KL = log(2) / 2 + log(2/3) / 2 = log(4/3) / 2."""
    hidden, weight = torch.ones(1, 1), torch.zeros(2, 1)
    weight2 = torch.tensor([[0.0], [3.0]]).clamp(min=1.0).log()
    kl, dhidden, dweight = run((hidden, weight, hidden, weight2), torch.ones(1))
    torch.testing.assert_close(kl, torch.tensor([4 / 3]).log() / 2)
    # c = p (log p - log p2 - KL) = (log 2 - KL, -(log 2 - KL)) / 2 ... = log(3) / 4 and minus that
    c = float(torch.tensor(3.0).log()) / 4
    torch.testing.assert_close(dweight, torch.tensor([[c], [-c]]))
    assert float(dhidden) == 0.0


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_of_the_same_models_it_is_zero(dtype: torch.dtype, isa: str) -> None:
    hidden, weight, *_ = make(50, 33, 4099, dtype)
    weight = weight.clone()
    weight[7, 0] = -float("inf")
    hidden = hidden.abs() + 0.1
    packed = pe.ops.linear_pack(weight, "float32" if dtype == F32 else "bfloat16")
    for results in (
        run((hidden, weight, hidden.clone(), weight.clone()), torch.ones(50)),
        (pe.ops.linear_kl(hidden, packed, hidden, weight, 0.7),),
        (pe.ops.linear_kl(hidden, weight, hidden, packed, 1.3),),
    ):
        assert all(torch.equal(x, torch.zeros_like(x)) for x in results[:1])
    dhidden, dweight = run((hidden, weight, hidden, weight), torch.ones(50))[1:]
    assert not bool(dweight.count_nonzero())
    weight[7, 0] = 0.0
    dhidden = run((hidden, weight, hidden, weight), torch.ones(50))[1]
    assert not bool(dhidden.count_nonzero())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_close_models(dtype: torch.dtype) -> None:
    """Policy and reference after a step: KL of 1e-6 and less is still within the budget."""
    hidden, weight, *_ = make(33, 48, 4099, dtype)
    for step in (1e-4, 1e-2):
        moved = (hidden.float() * (1 + step)).to(dtype)
        check((moved, weight, hidden, weight))


def test_logits_of_ten_thousand_stay_finite(isa: str) -> None:
    hidden, weight, hidden2, weight2 = make(40, 16, 600)
    for first, second in ((1e4, 1.0), (1.0, 1e4), (3e3, 3e3)):
        results = run((hidden * first, weight, hidden2 * second, weight2), gradient(40))
        assert all(bool(x.isfinite().all()) for x in results)
        assert bool((results[0] >= 0).all())
        exact = reference(
            *(x.double() for x in (hidden * first, weight)),
            *(x.double() for x in (hidden2 * second, weight2)),
        )
        plain = reference(hidden * first, weight, hidden2 * second, weight2)
        check_budget(results[0], plain, exact)


def test_banned_words(isa: str) -> None:
    """A word banned in p adds nothing, whatever p2 says; one banned in p2 alone costs infinity."""
    hidden, weight, hidden2, weight2 = make(40, 16, 600, D2=16)
    hidden, hidden2 = hidden.abs() + 0.1, hidden2.abs() + 0.1
    weight, weight2 = weight.clone(), weight2.clone()
    weight[:300, 0] = -float("inf")
    operands = (hidden, weight, hidden2, weight2)
    exact = reference(*(x.double() for x in operands))
    check_budget(pe.ops.linear_kl(*operands), reference(*operands), exact)
    weight2[5:290, 0] = -float("inf")
    exact = reference(*(x.double() for x in operands))
    check_budget(pe.ops.linear_kl(*operands), reference(*operands), exact)
    weight2[400, 0] = -float("inf")
    assert bool(pe.ops.linear_kl(*operands).isposinf().all())


def test_nan_spoils_no_other_row(isa: str) -> None:
    operands = make(33, 31, 300)
    clean = pe.ops.linear_kl(*operands)
    for i in (0, 2):
        spoiled = list(operands)
        spoiled[i] = spoiled[i].clone()
        spoiled[i][3, 5] = float("nan")
        kl = pe.ops.linear_kl(*spoiled)
        assert bool(kl[3].isnan())
        kl[3] = clean[3]
        assert torch.equal(kl, clean)


@pytest.mark.parametrize("V", [1, 33, 601])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_reverse(V: int, dtype: torch.dtype, isa: str) -> None:
    """KL(p2 || p), differentiated in p: the value of the exchanged models, another gradient."""
    operands, dkl = make(50, 47, V, dtype), gradient(50)
    got = run(operands, dkl, 0.8, reverse=True)
    assert torch.equal(got[0], pe.ops.linear_kl(*operands[2:], *operands[:2], 0.8))
    exact = linear_kl_with_gradients(*operands, dkl, 0.8, reverse=True)
    plain = linear_kl_with_gradients(*operands, dkl, 0.8, F32, reverse=True)
    for name, ours, p, e in zip(("kl", "dhidden", "dweight"), got, plain, exact, strict=True):
        check_budget(ours, p.to(ours.dtype), e, name)


def test_reverse_of_the_same_models_is_zero() -> None:
    hidden, weight, _, _ = make(31, 48, 300)
    kl, dhidden, dweight = run((hidden, weight, hidden, weight), gradient(31), reverse=True)
    assert not kl.any()
    assert not dhidden.any()
    assert not dweight.any()


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_by_finite_differences(reverse: bool) -> None:
    operands = make(5, 7, 300)
    _, dhidden, dweight = run(operands, torch.ones(5), reverse=reverse)
    exact = [x.double() for x in operands]
    rng = torch.Generator().manual_seed(0)
    for i, ours in enumerate((dhidden, dweight)):
        way, step = torch.randn(ours.shape, generator=rng).double(), 1e-6
        up, down = list(exact), list(exact)
        up[i], down[i] = exact[i] + step * way, exact[i] - step * way
        if reverse:
            up, down = up[2:] + up[:2], down[2:] + down[:2]
        slope = float((reference(*up) - reference(*down)).sum()) / (2 * step)
        terms = ours.double() * way
        error = abs(float(terms.sum()) - slope)
        assert error <= FINITE_DIFFERENCE_RTOL * float(terms.abs().sum())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_packed_weights_change_no_bit(dtype: torch.dtype, isa: str) -> None:
    operands = make(50, 47, 601, dtype)
    kind: Literal["float32", "bfloat16"] = "float32" if dtype == F32 else "bfloat16"
    hidden, weight, hidden2, weight2 = operands
    dkl, want = gradient(50), run(operands, gradient(50))
    heads = (pe.ops.linear_pack(weight, kind), pe.ops.linear_pack(weight2, kind))
    forward = linear_kl_forward(hidden, heads[0], hidden2, heads[1])
    dhidden, dweight = torch.empty(50, 47), torch.zeros(601, 47)
    linear_kl_backward(dkl, hidden, heads[0], hidden2, heads[1], forward, dhidden, dweight)
    got = (forward.kl, dhidden.to(dtype), dweight.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    leaf = hidden.detach().requires_grad_()
    kl = pe.ops.linear_kl(leaf, heads[0], hidden2, weight2)
    assert torch.equal(torch.autograd.grad(kl, leaf, dkl)[0], want[1])
    largest, log_total = forward.lse[:, :2].unbind(1)
    lse = pe.ops.linear_logprob_forward(hidden, weight, torch.zeros(50, dtype=torch.int64)).lse
    assert torch.equal(largest + log_total, lse)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_dweight_chain_continues(dtype: torch.dtype, isa: str) -> None:
    """Any split of the groups over calls gives the bits of one call; it starts at what stands."""
    hidden, weight, hidden2, weight2 = make(111, 47, 300, dtype)
    dkl, forward = gradient(111), linear_kl_forward(hidden, weight, hidden2, weight2)
    start = torch.randn(300, 47, generator=torch.Generator().manual_seed(5))

    def add(dweight: Tensor, first: int, last: int) -> Tensor:
        rows = slice(GROUPS[first], GROUPS[last])
        groups = torch.tensor(GROUPS[first : last + 1]) - GROUPS[first]
        part = linear_kl_forward(hidden[rows], weight, hidden2[rows], weight2)
        assert torch.equal(part.kl, forward.kl[rows])
        dhidden = torch.empty(part.kl.shape[0], 47)
        operands = (dkl[rows], hidden[rows], weight, hidden2[rows], weight2)
        linear_kl_backward(*operands, part, dhidden, dweight, groups)
        return dhidden

    whole, end = start.clone(), len(GROUPS) - 1
    dhidden = add(whole, 0, end)
    exact = linear_kl_with_gradients(hidden, weight, hidden2, weight2, dkl)[2] + start.double()
    check_budget(whole.to(dtype), exact.to(dtype), exact)
    for cuts in ((0, 1, end), (0, 3, 4, end), (0, 2, 5, end), tuple(range(end + 1))):
        parts = start.clone()
        rows = [add(parts, first, last) for first, last in itertools.pairwise(cuts)]
        assert torch.equal(parts, whole), cuts
        assert torch.equal(torch.cat(rows), dhidden), cuts


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_bits_do_not_depend_on_threads_rounds_or_instruction_set(
    dtype: torch.dtype, restore_isa: None, restore_threads: None
) -> None:
    """More rows than a wave and a step hold; every set with FMA gives the same bits."""
    operands, dkl = make(1100, 17, 300, dtype), gradient(1100)
    seen = []
    for isa in _C.available_isas():
        _C.set_isa(isa)
        results = []
        for threads in (1, 2):
            pe.set_num_threads(threads)
            results.append(run(operands, dkl))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        if isa != "baseline":
            seen.append(results[0])
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_strided_rows() -> None:
    operands = make(33, 31, 300)
    wide = [torch.randn(x.shape[0], 40) for x in operands]
    views = [w[:, 2 : 2 + x.shape[1]].copy_(x) for w, x in zip(wide, operands, strict=True)]
    got, want = run(tuple(views), gradient(33)), run(operands, gradient(33))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_messages() -> None:
    hidden, weight, hidden2, weight2 = make(9, 33, 257)
    kl = pe.ops.linear_kl
    forward = linear_kl_forward(hidden, weight, hidden2, weight2)
    packed = pe.ops.linear_pack(weight, "bfloat16")
    eight = pe.ops.linear_pack(weight, "int8")

    def backward(
        dkl: Tensor | None = None, dhidden: Tensor | None = None, **more: Tensor
    ) -> Callable[[], None]:
        operands = (hidden, weight, hidden2, weight2)
        given = torch.zeros(9) if dkl is None else dkl
        return lambda: linear_kl_backward(given, *operands, forward, dhidden, **more)

    leaf, leaf2 = hidden2.clone().requires_grad_(), weight2.clone().requires_grad_()
    bad: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (TypeError, "hidden must be a torch.Tensor", lambda: kl(None, weight, hidden2, weight2)),
        (TypeError, "weight2 must be a torch.Tensor", lambda: kl(hidden, weight, hidden2, 1)),
        (TypeError, "hidden must be float32 or bfloat16",
         lambda: kl(hidden.double(), weight, hidden2, weight2)),
        (TypeError, "weight2 must be float32 or bfloat16",
         lambda: kl(hidden, weight, hidden2, weight2.double())),
        (TypeError, "hidden must be bfloat16", lambda: kl(hidden, packed, hidden2, weight2)),
        (ValueError, "weight must be packed as 'float32' or 'bfloat16'",
         lambda: kl(hidden, eight, hidden2, weight2)),
        (ValueError, r"hidden2 must have shape \(T, D2\) = \(9, 39\) but got \(8, 39\)",
         lambda: kl(hidden, weight, hidden2[:8], weight2)),
        (ValueError, r"hidden must have shape \(T, D\)",
         lambda: kl(hidden[0], weight, hidden2, weight2)),
        (ValueError, r"weight must have shape \(V, D\)",
         lambda: kl(hidden, weight[:, :32], hidden2, weight2)),
        (ValueError, "weight2 must have V = 257 rows like weight but has 256",
         lambda: kl(hidden, weight, hidden2, weight2[:256])),
        (ValueError, "weight must have V >= 1",
         lambda: kl(hidden, weight[:0], hidden2, weight2[:0])),
        (ValueError, "hidden must have at least one column",
         lambda: kl(hidden[:, :0], weight[:, :0], hidden2, weight2)),
        (ValueError, "weight must have a contiguous last dimension",
         lambda: kl(hidden, weight.T.contiguous().T, hidden2, weight2)),
        (ValueError, "temperature must be positive",
         lambda: kl(hidden, weight, hidden2, weight2, 0.0)),
        (ValueError, "hidden2 must not require a gradient",
         lambda: kl(hidden, weight, leaf, weight2)),
        (ValueError, "weight2 must not require a gradient",
         lambda: kl(hidden, weight, hidden2, leaf2)),
        (TypeError, "dkl must be float32", backward(torch.zeros(9).double())),
        (ValueError, r"dkl must have shape \(T,\) = \(9,\)", backward(torch.zeros(8))),
        (ValueError, r"dhidden must have shape \(T, D\) = \(9, 33\)",
         backward(dhidden=torch.zeros(9, 32))),
        (ValueError, r"dweight must have shape \(V, D\) = \(257, 33\)",
         backward(dweight=torch.zeros(257, 32))),
        (ValueError, "groups must rise from 0 to T = 9", backward(groups=torch.tensor([0, 8]))),
    ]  # fmt: skip
    for error, message, call in bad:
        with pytest.raises(error, match=r"^\[linear_kl\] " + message):
            call()
