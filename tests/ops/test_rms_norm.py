"""rms_norm against its float64 reference, and its promises: gradient, bits, layouts, tracing."""

from __future__ import annotations

import pytest
import torch
from reference.rms_norm import dweight_in_row_order, rms_norm_with_gradients
from reference.rms_norm import rms_norm as reference
from tolerances import FINITE_DIFFERENCE_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C

EPS = 1e-5
F32, BF16 = torch.float32, torch.bfloat16
SIZES = (0, 1, 31, 32, 33, 111, 4099)
DTYPES = [(x, w, y) for x in (F32, BF16) for w in (F32, BF16) for y in (F32, BF16)]
NAMES = {F32: "f32", BF16: "bf16"}


def make(
    N: int, D: int, dtypes: tuple[torch.dtype, ...] = (F32, F32, F32), seed: int = 0
) -> tuple[Tensor, ...]:
    """x (N, D), weight (D,), dy (N, D)."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=rng) * 2.0
    weight = 1.0 + 0.3 * torch.randn(D, generator=rng)
    dy = torch.randn(N, D, generator=rng)
    return x.to(dtypes[0]), weight.to(dtypes[1]), dy.to(dtypes[2])


def run(x: Tensor, weight: Tensor, dy: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dweight) through autograd; dy has the dtype wanted of y."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = pe.ops.rms_norm(x, weight, eps, out_dtype=dy.dtype)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    return y.detach(), dx, dweight


def check(x: Tensor, weight: Tensor, dy: Tensor, eps: float = EPS) -> None:
    results = run(x, weight, dy, eps)
    exact = rms_norm_with_gradients(x, weight, eps, dy)
    # torch in float32, rounded once to the dtype of the result: as good as that dtype gets.
    plain_y, plain_dx, _ = rms_norm_with_gradients(x, weight, eps, dy, dtype=F32)
    plain = (plain_y, plain_dx, dweight_in_row_order(x, weight, eps, dy))
    dtypes = (dy.dtype, x.dtype, weight.dtype)
    for name, got, want, torch_has, dtype in zip(
        ("y", "dx", "dweight"), results, exact, plain, dtypes, strict=True
    ):
        assert got.dtype == dtype
        check_budget(got, torch_has.to(dtype), want, name)


@pytest.mark.parametrize("N", SIZES)
def test_rows(N: int, isa: str) -> None:
    check(*make(N, 111))


@pytest.mark.parametrize("D", SIZES[1:])
def test_columns(D: int, isa: str) -> None:
    check(*make(33, D))


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(NAMES[t] for t in d))
@pytest.mark.parametrize("D", [32, 111])
def test_dtypes(D: int, dtypes: tuple[torch.dtype, ...], isa: str) -> None:
    check(*make(33, D, dtypes))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1e-2, 1.0])
def test_eps(eps: float) -> None:
    check(*make(5, 64), eps)


def test_eps_matters_where_the_row_is_small() -> None:
    x = torch.full((1, 4), 1e-3)
    y = pe.ops.rms_norm(x, torch.ones(4), 1e-6)
    # mean(x^2) = 1e-6, so y = 1e-3 / sqrt(2e-6) = 1 / sqrt(2)
    torch.testing.assert_close(y, torch.full((1, 4), 0.5**0.5))


def test_value_by_hand() -> None:
    """mean(3^2, 4^2) = 12.5; y = (3, 4) / sqrt(12.5) * (1, 2)."""
    y = pe.ops.rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(y, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_extreme_rows(isa: str) -> None:
    """Zeros, tiny and large rows stay exact; an infinity or NaN spoils its own row only."""
    x, weight, _ = make(6, 37)
    x[0] = 0.0
    x[1] *= 1e-18
    x[2] *= 1e17
    x[3, 5] = float("inf")
    x[4, 5] = float("nan")
    y = pe.ops.rms_norm(x, weight, EPS)
    rows = [0, 1, 2, 5]
    check_budget(
        y[rows], reference(x[rows], weight, EPS), reference(x[rows].double(), weight.double(), EPS)
    )
    assert torch.equal(y[0], torch.zeros(37))
    assert y[3, 5].isnan()  # inf * 1/inf
    assert torch.equal(y[3].nan_to_num(0.0), torch.zeros(37))
    assert bool(y[4].isnan().all())


def test_finite_differences() -> None:
    """d loss along a random direction, from the float64 reference, equals our gradient along it."""
    x, weight, dy = make(7, 33)
    _, dx, dweight = run(x, weight, dy)
    rng = torch.Generator().manual_seed(1)
    step = 1e-6
    for name, grad, move_x in (("dx", dx, True), ("dweight", dweight, False)):
        for _ in range(8):
            u = torch.randn(grad.shape, generator=rng, dtype=torch.float64)

            def loss(h: float, u: Tensor = u, move_x: bool = move_x) -> Tensor:
                moved_x = x.double() + h * u if move_x else x.double()
                moved_w = weight.double() if move_x else weight.double() + h * u
                return (reference(moved_x, moved_w, EPS) * dy.double()).sum()

            slope = float(loss(step) - loss(-step)) / (2 * step)
            scale = float((grad.double() * u).abs().sum())
            assert (
                abs(float((grad.double() * u).sum()) - slope) <= FINITE_DIFFERENCE_RTOL * scale
            ), name


def test_shapes_of_any_rank() -> None:
    x, weight, dy = make(24, 33)
    y, dx, dweight = run(x, weight, dy)
    for shape in ((2, 3, 4, 33), (24, 1, 33), (1, 24, 33)):
        got = run(x.view(shape), weight, dy.view(shape))
        assert got[0].shape == got[1].shape == shape
        assert torch.equal(got[0].view(24, 33), y)
        assert torch.equal(got[1].view(24, 33), dx)
        assert torch.equal(got[2], dweight)
    assert torch.equal(pe.ops.rms_norm(x[3], weight, EPS), y[3])  # (D,)


LAYOUTS = {
    "strided rows": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed": lambda x: x.T.contiguous().T,
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "3-d, permuted": lambda x: x.view(3, 11, -1).permute(1, 0, 2).contiguous().permute(1, 0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    x, weight, dy = make(33, 47)
    want = run(x, weight, dy)
    strided, strided_dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    assert not strided.is_contiguous()
    assert torch.equal(strided.reshape(x.shape), x)
    got = run(strided, weight, strided_dy)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.reshape(b.shape), b)


def test_gradient_that_is_broadcast() -> None:
    """y.sum() sends back a gradient of stride 0."""
    x, weight, _ = make(5, 33)
    x.requires_grad_()
    pe.ops.rms_norm(x, weight, EPS).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, run(x, weight, torch.ones(5, 33))[1])


def test_only_wanted_gradients() -> None:
    x, weight, dy = make(5, 33)
    _, dx, dweight = run(x, weight, dy)
    x.requires_grad_()
    pe.ops.rms_norm(x, weight, EPS).backward(dy)
    assert weight.grad is None
    assert torch.equal(x.grad, dx)
    x, parameter = x.detach(), torch.nn.Parameter(weight)
    pe.ops.rms_norm(x, parameter, EPS).backward(dy)
    assert torch.equal(parameter.grad, dweight)


def test_y_may_be_x() -> None:
    x, weight, dy = make(33, 47)
    y, *_ = run(x, weight, dy)
    _C.rms_norm_forward(x, weight, EPS, x, None)
    assert torch.equal(x, y)


def test_rstd() -> None:
    x, weight, _ = make(9, 47)
    rstd = torch.empty(9)
    _C.rms_norm_forward(x, weight, EPS, torch.empty_like(x), rstd)
    exact = (x.double().square().mean(-1) + EPS).rsqrt()
    check_budget(rstd, exact.float(), exact, "rstd")


def test_dweight_chain_continues() -> None:
    """dweight is accumulated: two calls over parts of the rows give the bits of one over all."""
    x, weight, dy = make(111, 47)
    rstd = torch.empty(111)
    _C.rms_norm_forward(x, weight, EPS, torch.empty_like(x), rstd)
    start = torch.randn(47, generator=torch.Generator().manual_seed(5))
    whole = start.clone()
    _C.rms_norm_backward(dy, x, weight, rstd, None, whole)
    for cut in (1, 16, 50, 110):
        parts = start.clone()
        for rows in (slice(0, cut), slice(cut, 111)):
            _C.rms_norm_backward(dy[rows], x[rows], weight, rstd[rows], None, parts)
        assert torch.equal(parts, whole), cut
    assert not torch.equal(whole, start)


def test_a_row_does_not_know_its_batch(isa: str) -> None:
    x, weight, dy = make(111, 47)
    y, dx, _ = run(x, weight, dy)
    for row in (0, 15, 16, 110):
        alone = run(x[row : row + 1], weight, dy[row : row + 1])
        assert torch.equal(alone[0][0], y[row])
        assert torch.equal(alone[1][0], dx[row])


def test_repeat_is_bitwise(isa: str) -> None:
    inputs = make(111, 111, (BF16, F32, F32))
    first = run(*inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), first, strict=True))


@pytest.mark.parametrize("shape", [(4099, 47), (17, 4099), (1, 33)])
def test_threads_change_nothing(shape: tuple[int, int], restore_threads: None) -> None:
    inputs = make(*shape)
    pe.set_num_threads(1)
    one = run(*inputs)
    for n in (2, 3):
        pe.set_num_threads(n)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), one, strict=True)), n


def test_instruction_sets_with_fma_agree_bitwise(restore_isa: None) -> None:
    inputs = make(33, 111, (BF16, F32, F32))
    results = {}
    for name in _C.available_isas():
        if name != "baseline":
            _C.set_isa(name)
            results[name] = run(*inputs)
    if len(results) < 2:
        pytest.skip("needs two instruction sets with FMA")
    first, *others = results.values()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    check(*make(9, 33, (BF16, F32, BF16)))


def test_second_derivative_is_refused() -> None:
    x, weight, _ = make(3, 8)
    x.requires_grad_()
    y = pe.ops.rms_norm(x, weight, EPS)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_opcheck() -> None:
    x, weight, dy = make(5, 33)
    args = (x.requires_grad_(), weight.requires_grad_(), EPS, BF16)
    torch.library.opcheck(torch.ops.pyengine.rms_norm.default, args)
    rstd = torch.rand(5)
    args = (dy, x.detach(), weight.detach(), rstd)
    torch.library.opcheck(torch.ops.pyengine.rms_norm_backward.default, args)


@pytest.mark.parametrize("out_dtype", [None, BF16])
def test_compiled_equals_eager(out_dtype: torch.dtype | None) -> None:
    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return pe.ops.rms_norm(x * 2.0, weight, EPS, out_dtype).float() * 3.0

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, weight, dy = make(6, 33)
    results = []
    for f in (layer, compiled):
        a, w = x.detach().view(2, 3, 33).requires_grad_(), weight.detach().requires_grad_()
        y = f(a, w)
        results.append((y.detach(), *torch.autograd.grad(y, (a, w), dy.view(2, 3, 33))))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
